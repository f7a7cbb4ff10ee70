import type { Bytes } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import type { Origin, Told } from "../oci/origin.ts";
import type { Reference } from "../oci/reference.ts";
import type { Remote } from "../remote/remote.ts";
import type { ProvenManifest } from "./copy-manifests.ts";

export type CopySource = Omit<Remote, "headBlob" | "ping" | "state" | typeof Symbol.asyncDispose>;

export interface CopyOptions {
  /** `os/architecture[/variant]`; none: all. With some, an index is copied as it is, without the others: it is sparse. */
  platforms: readonly string[];
  /** What refers to an image: not at all, with each image that changed, or also where the image itself has not. */
  attached: "never" | "whenChanged" | "always";
  /** What becomes of a tag at the target that names something else. */
  existing: "replace" | "keep" | "fail";
  /** Whether a tag's copy bears the mark of its source's push: it is refused where the target's was pushed later. Else it is a push itself. */
  keepOrigin: boolean;
  /** Only finds out what there would be to do. */
  dryRun: boolean;
  /** Blobs, images and tags on their way at a time, each. */
  concurrency: number;
}

export interface CopyRequest {
  from: { repository: string; reference: Reference };
  to: { repository: string; reference: Reference };
  /** What the source's tag names, where an event has told: it is not asked. */
  digest?: Digest;
  /** With `digest`: what the tag is to lead to, which is its index without the platforms that are left out. */
  rewritten?: Digest | undefined;
  /**
   * What the tag at the target leads to, where that has just been asked; null: it is not there. It is asked again before it moves.
   */
  there?: Told | null | undefined;
  /** The manifest, where it has been read. */
  found?: ProvenManifest | undefined;
  /** Who asks copies what refers to it: only what refers to something below it is looked for. */
  isAttended?: boolean;
  /** Instead of the option. */
  existing?: CopyOptions["existing"];
  /** With `digest`: the mark of the push that has brought the source's tag to it. */
  origin?: Origin | undefined;
}

/** How far one image is, in bytes of blobs. */
export interface CopyProgress {
  totalBytes: Bytes;
  doneBytes: Bytes;
}

export interface CopyResult extends CopyProgress {
  /** kept: the tag names something else, and stays. */
  outcome: "copied" | "unchanged" | "kept";
  digest: Digest;
  /** Of blobs; with `dryRun`, those that would be. */
  sentBytes: Bytes;
  mountedBytes: Bytes;
  presentBytes: Bytes;
  tagsMoved: string[];
  /** What the copy lacks, and why. */
  notes: string[];
}

/** One image being copied. */
export interface Job {
  from: string;
  to: string;
  existing: CopyOptions["existing"];
  result: CopyResult;
  tell: (progress: CopyResult) => void;
  signal: AbortSignal;
}

/** Adds to how far an image is, and tells. */
export function addProgress({ result, tell }: Job, { totalBytes, doneBytes }: CopyProgress): void {
  result.totalBytes += totalBytes;
  result.doneBytes += doneBytes;
  tell(result);
}

/** A manifest that the target has, and what it was copied with. */
export interface Node {
  digest: Digest;
  children: Node[];
  /** An index that the source does not have. */
  made?: ProvenManifest;
}

/** Of an index: all of it, only some with the index as it is, or with one that lists no more than that. */
export type IndexMode = "all" | "sparse" | "rewrite";

/** All of them, when the last has ended: nothing goes on behind the back of whoever is told of a failure. @throws the first failure */
export async function allOf<T extends readonly unknown[]>(
  works: readonly [...{ [K in keyof T]: T[K] | Promise<T[K]> }],
): Promise<T> {
  const settled = await Promise.allSettled(works.map((work) => Promise.resolve(work)));
  for (const one of settled) if (one.status === "rejected") throw one.reason;
  return settled.map((one) => (one as PromiseFulfilledResult<unknown>).value) as unknown as T;
}
