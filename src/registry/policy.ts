import picomatch from "picomatch";
import { namespaceOf, type RepositoryName, type Tag } from "../oci/reference.ts";

/** Whether a tag, once pushed, stays as it is. */
export type Immutable = (repository: RepositoryName, tag: Tag) => boolean;

type Rules = Readonly<Record<string, readonly string[]>>;

/** Globs are compiled once for a configuration, not for every push. */
const compiled = new WeakMap<Rules, Immutable>();

/** @param rules globs of tags by globs of namespaces (first components); never changed */
export function immutableTags(rules: Rules): Immutable {
  const known = compiled.get(rules) ?? compile(rules);
  compiled.set(rules, known);
  return known;
}

function compile(rules: Rules): Immutable {
  const matchers = Object.entries(rules).map(([namespaces, tags]) => ({
    namespace: picomatch(namespaces),
    tag: tags.length > 0 ? picomatch([...tags], { dot: true }) : () => false,
  }));
  return (repository, tag) => {
    const namespace = namespaceOf(repository);
    return matchers.some((rule) => rule.namespace(namespace) && rule.tag(tag));
  };
}
