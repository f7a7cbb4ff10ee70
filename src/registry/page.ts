/** A part of a sorted list. */
export interface Page<T> {
  items: T[];
  /** Whether more follow. */
  more: boolean;
}

/**
 * The page of a sorted list after `last` (exclusive), at most `n` long.
 * @param n undefined: all; 0: none, and none follow
 * Source: OCI distribution-spec, "Listing Tags"
 */
export function pageOf(sorted: readonly string[], n: number | undefined, last: string | undefined): Page<string> {
  const start = last === undefined ? 0 : firstAfter(sorted, last);
  if (n === 0) return { items: [], more: false };
  const end = n === undefined ? sorted.length : start + n;
  return { items: sorted.slice(start, end), more: end < sorted.length };
}

function firstAfter(sorted: readonly string[], last: string): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((sorted[middle] ?? "") <= last) low = middle + 1;
    else high = middle;
  }
  return low;
}
