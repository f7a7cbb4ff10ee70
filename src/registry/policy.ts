import picomatch from "picomatch";
import type { RepositoryName, Tag } from "../oci/reference.ts";

/** Whether a tag, once pushed, stays as it is. */
export type Immutable = (repository: RepositoryName, tag: Tag) => boolean;

/** @param rules globs of tags by globs of namespaces (first components) */
export function immutableTags(rules: Readonly<Record<string, readonly string[]>>): Immutable {
  const matchers = Object.entries(rules).map(([namespaces, tags]) => ({
    namespace: picomatch(namespaces),
    tag: tags.length > 0 ? picomatch([...tags], { dot: true }) : () => false,
  }));
  return (repository, tag) => {
    const [namespace = repository] = repository.split("/", 1);
    return matchers.some((rule) => rule.namespace(namespace) && rule.tag(tag));
  };
}
