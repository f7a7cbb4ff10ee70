/** Scopes, as clients name what they want a token for. Source: distribution/distribution, docs/spec/auth/scope.md */

export interface Scope {
  /** `repository`, `registry`. */
  type: string;
  /** `plugin` in `repository(plugin)`. */
  class: string | undefined;
  /** As the client wrote it: a repository, with or without a host in front, or `catalog`. */
  name: string;
  /** `pull`, `push`, `delete`, `*`; each once, in the order of their first mention, at least one. */
  actions: readonly string[];
}

/** Clients ask for one to three. */
const MOST_SCOPES = 100;
const MOST_ACTIONS = 16;
const TYPE = /^([a-z0-9]{1,64})(?:\(([a-z0-9]{1,64})\))?$/;
/** A repository's name has at most 255 characters, a host with its port 260. */
const NAME = /^[!-~]{1,520}$/;
const ACTION = /^(?:[a-z]{1,32}|\*)$/;

/**
 * Parses the values of `scope` parameters, each of which holds scopes parted by spaces. What is no scope is left out, as is what comes
 * after the hundredth; scopes of one name are joined.
 */
export function parseScopes(texts: readonly string[]): Scope[] {
  const scopes = new Map<string, Scope>();
  for (const text of texts.flatMap((text) => text.split(" "))) {
    const scope = parseScope(text);
    if (!scope) continue;
    const key = renderScope({ ...scope, actions: [] });
    const before = scopes.get(key);
    if (!before && scopes.size >= MOST_SCOPES) break;
    scopes.set(key, before ? { ...before, actions: once([...before.actions, ...scope.actions]) } : scope);
  }
  return [...scopes.values()];
}

/** `repository(plugin):team/app:pull,push` */
export function renderScope({ type, class: kind, name, actions }: Scope): string {
  return `${type}${kind === undefined ? "" : `(${kind})`}:${name}:${actions.join(",")}`;
}

function parseScope(text: string): Scope | undefined {
  // A name may hold colons itself, as in localhost:5000/app.
  const first = text.indexOf(":");
  const last = text.lastIndexOf(":");
  if (last <= first) return undefined;
  const [, type, kind] = TYPE.exec(text.slice(0, first)) ?? [];
  const name = text.slice(first + 1, last);
  if (type === undefined || !NAME.test(name)) return undefined;
  const actions = once(
    text
      .slice(last + 1)
      .split(",")
      .filter((action) => ACTION.test(action)),
  );
  return actions.length === 0 ? undefined : { type, class: kind, name, actions };
}

function once(actions: readonly string[]): string[] {
  return [...new Set(actions)].slice(0, MOST_ACTIONS);
}
