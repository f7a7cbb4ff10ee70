import { Problem } from "./problem.ts";

/** The entity tags of an If-Match or If-None-Match header; undefined: there is none. Weak tags are none that match. Source: RFC 9110 §13.1.1 */
export function tagsOf(header: string | undefined): readonly string[] | "any" | undefined {
  if (header === undefined) return undefined;
  return header.trim() === "*" ? "any" : [...header.matchAll(/(?<!W\/)"([^"]*)"/g)].map(([, tag = ""]) => tag);
}

/** @param wanted those of If-Match @param etag of what is there @throws Problem precondition-failed */
export function checkMatch(wanted: readonly string[] | "any" | undefined, etag: string | undefined): void {
  if (wanted === undefined) return;
  if (etag !== undefined && (wanted === "any" || wanted.includes(etag))) return;
  throw new Problem(
    "precondition-failed",
    etag === undefined
      ? "If-Match is given, and there is nothing"
      : `If-Match is not the ETag of what is there, "${etag}": look at it anew`,
  );
}
