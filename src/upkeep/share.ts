import { hexOf, type Digest } from "../oci/digest.ts";

/**
 * How far a digest is in the order of all, from 0 (exclusive) to 1: they are spread evenly, so nobody needs to count them.
 * Those of sha512 come last, and are few.
 */
export function shareOf(digest: string): number {
  return digest.startsWith("sha256:") ? (Number.parseInt(hexOf(digest as Digest).slice(0, 8), 16) + 1) / 2 ** 32 : 1;
}
