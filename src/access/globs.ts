/**
 * The globs that limit robots and tokens. Whoever logs in may write some, and every request is held against them: so they are not made into
 * regular expressions, of which a few stars can keep the event loop busy for minutes. Here a glob costs at most some 50 µs.
 */

const MAX_LENGTH = 255;
const MAX_COMPONENTS = 16;
const COMPONENT = /^[a-z0-9._:*-]+$/;

/** Whether the text is a glob: components of a repository's name, in which `*` stands for any text, and `**` for any components. */
export function isGlob(text: string): boolean {
  return (
    text.length <= MAX_LENGTH &&
    text.split("/").length <= MAX_COMPONENTS &&
    text.split("/").every((part) => part === "**" || (COMPONENT.test(part) && !part.includes("**")))
  );
}

/**
 * A glob as a test of full repository names.
 * @param glob one that {@link isGlob} accepts: `team/app`, `team/*`, `team/**` (which is `team`, too), `**`
 */
export function globMatcher(glob: string): (repository: string) => boolean {
  const groups = splitAt(glob.split("/"), (part) => part === "**").map((parts) => parts.map((part) => part.split("*")));
  return (repository) => fits(groups, repository.split("/"));
}

/** What a component says before, between and after its stars. */
type Pieces = readonly string[];

/** Whether a component is the pieces in their order, with any text between two of them. As in {@link fits}, the first place will do. */
function isOf([first = "", ...others]: Pieces, text: string): boolean {
  const last = others.pop();
  if (last === undefined) return text === first;
  if (!text.startsWith(first)) return false;
  let at = first.length;
  for (const piece of others) {
    const found = text.indexOf(piece, at);
    if (found < 0) return false;
    at = found + piece.length;
  }
  return at <= text.length - last.length && text.endsWith(last);
}

/**
 * Whether the items are the groups in their order, with anything between two of them. The first place where a group fits is as good as any
 * later one: it leaves the most to the groups that follow.
 */
function fits(groups: readonly (readonly Pieces[])[], items: readonly string[]): boolean {
  const isAt = (group: readonly Pieces[], at: number): boolean =>
    at + group.length <= items.length && group.every((pieces, i) => isOf(pieces, items[at + i] ?? ""));
  const [first = [], ...others] = groups;
  const last = others.pop();
  if (!isAt(first, 0)) return false;
  if (!last) return first.length === items.length;
  let at = first.length;
  for (const group of others) {
    while (at + group.length <= items.length && !isAt(group, at)) at++;
    at += group.length;
  }
  const end = items.length - last.length;
  return at <= end && isAt(last, end);
}

function splitAt<T>(items: readonly T[], isBetween: (item: T) => boolean): T[][] {
  const groups: T[][] = [[]];
  for (const item of items) {
    if (isBetween(item)) groups.push([]);
    else groups.at(-1)?.push(item);
  }
  return groups;
}
