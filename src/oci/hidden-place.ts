/**
 * Where content of a registry that is a source of copies, and no upstream, lies in the cache. It was read with credentials that clients were
 * never granted: no client's name leads there, and only administrators see what is there.
 */
const BEGINNING = "replication.";

/** The first component of its repositories' full names. */
export function hiddenPlaceOf(registry: string): string {
  return `${BEGINNING}${registry}`;
}

/** @param name of a repository, an upstream or a namespace */
export function isHidden(name: string): boolean {
  return name.startsWith(BEGINNING);
}
