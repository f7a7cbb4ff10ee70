import { createHash, hash, type Hash } from "node:crypto";
import { RegistryError } from "./errors.ts";

/** `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits. Made by {@link parseDigest} or {@link digestOf} only. */
export type Digest = string & { readonly __brand: "Digest" };

export type DigestAlgorithm = "sha256" | "sha512";

const SUPPORTED = /^(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$/;

/** Whether the text is a digest of an algorithm that Entrepot can prove. Linear time. */
export function isDigest(text: string): text is Digest {
  // The length first: a regular expression never sees a 16 KB name.
  return (text.length === 71 || text.length === 135) && SUPPORTED.test(text);
}

/** @throws RegistryError DIGEST_INVALID for anything but a sha256 or sha512 digest in its canonical spelling. */
export function parseDigest(text: string): Digest {
  if (isDigest(text)) return text;
  throw new RegistryError(
    "DIGEST_INVALID",
    `"${text.slice(0, 140)}" is not a digest: expected sha256:<64 hex digits> or sha512:<128 hex digits>`,
  );
}

export function algorithmOf(digest: Digest): DigestAlgorithm {
  return digest.startsWith("sha512:") ? "sha512" : "sha256";
}

export function hexOf(digest: Digest): string {
  return digest.slice(7);
}

/** The digest of bytes at hand. For a stream use {@link startHash}. */
export function digestOf(bytes: Uint8Array, algorithm: DigestAlgorithm = "sha256"): Digest {
  return `${algorithm}:${hash(algorithm, bytes, "hex")}` as Digest;
}

export function startHash(digest: Digest): Hash {
  return createHash(algorithmOf(digest));
}

/** Consumes the hash: whether what went through it is the content that `digest` names. */
export function proves(hash: Hash, digest: Digest): boolean {
  return hash.digest("hex") === hexOf(digest);
}
