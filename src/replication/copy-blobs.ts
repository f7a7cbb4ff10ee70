/**
 * The blobs of images at a target: there already, mounted or sent, whichever is cheapest.
 *
 * Invariants
 * - A blob that several images share goes out once: who wants it in the same repository joins, who wants it in another one waits, and mounts it.
 * - Of all that write to the target, one at a time brings a blob to a repository.
 */
import PQueue from "p-queue";
import type { Bytes, Clock } from "../base/clock.ts";
import type { Turns } from "../base/turns.ts";
import type { Digest } from "../oci/digest.ts";
import type { Descriptor } from "../oci/manifest.ts";
import type { Target, UploadSession } from "../remote/target.ts";
import { sendBlob, type UploadMemory } from "./copy-blob.ts";
import { addProgress, allOf, type CopyOptions, type CopySource, type Job } from "./copy-job.ts";
import type { KnownBlobs } from "./copy-known.ts";
import type { Again } from "./copy-retry.ts";

interface BlobCopiesParts {
  source: CopySource;
  target: Target;
  clock: Clock;
  options: Pick<CopyOptions, "dryRun" | "concurrency">;
  known: KnownBlobs;
  uploads: UploadMemory;
  turns: Turns;
  again: Again;
}

export class BlobCopies {
  readonly #parts: BlobCopiesParts;
  readonly #known: KnownBlobs;
  readonly #target: Target;
  readonly #queue: PQueue;
  /** By repository and digest. */
  readonly #arriving = new Map<string, Promise<void>>();
  /** By digest: who wants it elsewhere waits, and mounts it. */
  readonly #onTheWay = new Map<Digest, Promise<void>>();

  constructor(parts: BlobCopiesParts) {
    this.#parts = parts;
    this.#known = parts.known;
    this.#target = parts.target;
    this.#queue = new PQueue({ concurrency: parts.options.concurrency });
  }

  /** The target has the image that these are of, and so all of them. */
  present(job: Job, blobs: readonly Descriptor[]): void {
    const sizeBytes = sum(blobs);
    for (const { digest } of blobs) this.#known.add(job.to, digest);
    job.result.presentBytes += sizeBytes;
    addProgress(job, { totalBytes: sizeBytes, doneBytes: sizeBytes });
  }

  /** Has all blobs of an image in a repository of the target. @throws as {@link sendBlob} */
  async bringAll(job: Job, blobs: readonly Descriptor[]): Promise<void> {
    addProgress(job, { totalBytes: sum(blobs), doneBytes: 0 });
    await allOf(blobs.map((blob) => this.bring(job, blob)));
  }

  /**
   * Has a blob in a repository of the target.
   * @param doubted the target was wrong about it: it is sent
   * @throws as {@link sendBlob}
   */
  async bring(job: Job, blob: Descriptor, doubted = false): Promise<void> {
    const { digest, sizeBytes } = blob;
    if (doubted) this.#known.forget(job.to, digest);
    const key = `${job.to} ${digest}`;
    const joined = this.#arriving.get(key);
    if (joined && !doubted) {
      await joined;
      job.result.presentBytes += sizeBytes;
      addProgress(job, { totalBytes: 0, doneBytes: sizeBytes });
      return;
    }
    const work = this.#inTurn(job, blob, doubted);
    this.#arriving.set(key, work);
    try {
      await work;
    } finally {
      this.#arriving.delete(key);
    }
  }

  async #inTurn(job: Job, blob: Descriptor, doubted: boolean): Promise<void> {
    const { digest } = blob;
    for (let other; (other = this.#onTheWay.get(digest)) !== undefined;) await other;
    // Another one's upload of it would have the same session.
    const key = `${this.#target.name} ${job.to}@${digest}`;
    const { turns } = this.#parts;
    const work = this.#queue.add(() => turns.take(key, () => this.#cheapest(job, blob, doubted), job.signal));
    this.#onTheWay.set(
      digest,
      work.then(
        () => void this.#onTheWay.delete(digest),
        () => void this.#onTheWay.delete(digest),
      ),
    );
    await work;
  }

  async #cheapest(job: Job, blob: Descriptor, doubted: boolean): Promise<void> {
    const { again, options } = this.#parts;
    const { to, result, signal } = job;
    const { digest, sizeBytes } = blob;
    const arrived = (as: "mountedBytes" | "presentBytes"): void => {
      this.#known.add(to, digest);
      result[as] += sizeBytes;
      addProgress(job, { totalBytes: 0, doneBytes: sizeBytes });
    };
    let session: UploadSession | undefined;
    if (!doubted) {
      const next = this.#known.step(to, digest);
      if (next.step === "nothing") return arrived("presentBytes");
      if (next.step === "mount") {
        const mounted = options.dryRun ? "mounted" : await this.#mount(to, digest, next.from, signal);
        if (mounted === "mounted") return arrived("mountedBytes");
        session = mounted;
      }
      const head = await again(() => this.#target.headBlob(to, digest, { signal }), signal);
      if (head && (head.sizeBytes ?? sizeBytes) === sizeBytes) {
        if (session) await this.#target.cancelUpload(to, session);
        return arrived("presentBytes");
      }
    }
    await this.#send(job, blob, session, doubted);
    this.#known.add(to, digest);
  }

  /** @param doubted it counts as done already */
  async #send(job: Job, blob: Descriptor, session: UploadSession | undefined, doubted: boolean): Promise<void> {
    const { source, clock, uploads, options } = this.#parts;
    const { to, from, result, signal } = job;
    const { sizeBytes } = blob;
    let toldBytes = 0;
    const sent = (bytes: Bytes): void => {
      result.sentBytes += bytes;
      // What is sent once more after a break is no progress.
      const more = Math.min(bytes, sizeBytes - toldBytes);
      toldBytes += more;
      addProgress(job, { totalBytes: 0, doneBytes: doubted ? 0 : more });
    };
    if (options.dryRun) {
      sent(sizeBytes);
      return;
    }
    await sendBlob({ source, target: this.#target, from, to, blob, session, uploads, clock, sent, signal });
    // An upload of before needed less.
    addProgress(job, { totalBytes: 0, doneBytes: doubted ? 0 : sizeBytes - toldBytes });
  }

  async #mount(
    to: string,
    digest: Digest,
    from: string,
    signal: AbortSignal,
  ): Promise<"mounted" | UploadSession | undefined> {
    const mounted = await this.#parts.again(() => this.#target.mount(to, digest, from, { signal }), signal);
    if (mounted === undefined) this.#known.mountRefused();
    return mounted;
  }
}

function sum(blobs: readonly Descriptor[]): Bytes {
  return blobs.reduce((total, { sizeBytes }) => total + sizeBytes, 0);
}
