/** One scheme of a `WWW-Authenticate` header. */
export interface Challenge {
  /** In lower case. */
  scheme: string;
  /** Names in lower case, values unquoted; the first of a name counts. */
  parameters: ReadonlyMap<string, string>;
}

const TOKEN = /[!#$%&'*+\-.^_`|~0-9A-Za-z]+/y;
const GAP = /[\s,]*/y;
const EQUALS = /\s*=\s*/y;
const QUOTED = /"((?:[^"\\]|\\.)*)"/sy;
const MAX_LENGTH = 8192;

/**
 * Reads all challenges of a `WWW-Authenticate` header; stops at the first fault and keeps what came before. Linear time.
 * @param header several header lines joined with `, `
 * Source: RFC 9110 §11.2, §11.6.1
 */
export function parseChallenges(header: string): Challenge[] {
  const text = header.slice(0, MAX_LENGTH);
  const challenges: { scheme: string; parameters: Map<string, string> }[] = [];
  let at = 0;
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match) at = pattern.lastIndex;
    return match;
  };
  for (;;) {
    take(GAP);
    const name = take(TOKEN)?.[0].toLowerCase();
    if (name === undefined) return challenges;
    if (!take(EQUALS)) {
      challenges.push({ scheme: name, parameters: new Map() });
      continue;
    }
    const quoted = take(QUOTED);
    const value = quoted ? (quoted[1] ?? "").replaceAll(/\\(.)/gs, "$1") : take(TOKEN)?.[0];
    const parameters = challenges.at(-1)?.parameters;
    if (value === undefined || parameters === undefined) return challenges;
    if (!parameters.has(name)) parameters.set(name, value);
  }
}
