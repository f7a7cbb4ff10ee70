/** Tags of a copy's target: whether they may move, and the move. What they are to lead to is there by then, or comes with them. */
import type { Clock } from "../base/clock.ts";
import type { Digest } from "../oci/digest.ts";
import { isBehind, isPushedLater, type Origin, type Told } from "../oci/origin.ts";
import type { Reference, Tag } from "../oci/reference.ts";
import { RemoteError } from "../remote/remote-error.ts";
import { isTagNewer, type Target } from "../remote/target.ts";
import type { ContentCopies } from "./copy-content.ts";
import { CopyError } from "./copy-error.ts";
import type { CopyOptions, Job } from "./copy-job.ts";
import type { ProvenManifest } from "./copy-manifests.ts";
import type { Again } from "./copy-retry.ts";
import type { TargetManifests } from "./copy-target.ts";

interface TagCopiesParts {
  target: Target;
  clock: Clock;
  options: Pick<CopyOptions, "keepOrigin" | "dryRun">;
  manifests: TargetManifests;
  contents: ContentCopies;
  again: Again;
}

export class TagCopies {
  readonly #parts: TagCopiesParts;

  constructor(parts: TagCopiesParts) {
    this.#parts = parts;
  }

  /** Whether a tag leads to what it should, and bears the mark that it should. */
  isSettled(there: Told | undefined, wanted: Told): boolean {
    const { options, clock } = this.#parts;
    if (there?.digest !== wanted.digest) return false;
    return !(options.keepOrigin && isBehind(there, wanted, clock.now()));
  }

  /**
   * Whether what is there stays, before anything is copied: the result tells why.
   * @throws CopyError conflict where tags of other content are an error
   */
  stays(job: Job, reference: Reference, there: Told | undefined, wanted: Told): boolean {
    const { options, clock } = this.#parts;
    if (there === undefined) return false;
    if (there.digest !== wanted.digest && job.existing !== "replace") {
      this.#refuse(reference, there.digest, wanted.digest, job);
      return true;
    }
    if (!options.keepOrigin || !isPushedLater(there, wanted, clock.now())) return false;
    this.#noteLater(reference, there.digest, job);
    return true;
  }

  /**
   * Moves a tag, if what it leads to now lets it.
   * @param before what the tag named when the copy began
   * @param origin the mark of the source's tag
   * @returns whether it names what was copied
   * @throws CopyError conflict; RemoteError
   */
  async move(
    job: Job,
    tag: Tag,
    found: ProvenManifest,
    { before, origin }: { before: Digest | undefined; origin: Origin | undefined },
  ): Promise<boolean> {
    const { manifests, options } = this.#parts;
    const { to, existing, result, signal } = job;
    const { digest } = found;
    const there = await manifests.stateAt(to, tag, signal);
    const now = there?.digest;
    if (this.isSettled(there, { digest, origin })) return true;
    if (now !== undefined && now !== digest && now !== before && existing !== "replace") {
      this.#refuse(tag, now, digest, job);
      return false;
    }
    if (!options.dryRun) {
      try {
        await this.#put(job, tag, found, origin);
      } catch (error) {
        if (!isTagNewer(error)) throw error;
        this.#noteLater(tag, (await manifests.stateAt(to, tag, signal))?.digest, job);
        return false;
      }
    }
    if (now !== digest) result.tagsMoved.push(tag);
    return true;
  }

  async #put(job: Job, tag: Tag, found: ProvenManifest, origin: Origin | undefined): Promise<void> {
    const { target, contents, options, again } = this.#parts;
    const { to, signal } = job;
    const { bytes, manifest } = found;
    const sent = { bytes, mediaType: manifest.mediaType };
    const marked = { signal, ...(options.keepOrigin ? { origin } : {}) };
    const put = () => again(() => target.putManifest(to, tag, sent, marked), signal);
    let stored = await put().catch(asMissing);
    // Sent with its tag alone; or gone again: the target was emptied, or has collected it.
    if (stored.missing) {
      await contents.bringAgain(job, found);
      stored = await put();
    }
    if (stored.missing) throw stored.cause;
  }

  #noteLater(reference: Reference, present: Digest | undefined, { to, result }: Job): void {
    const name = `${this.#parts.target.name}/${to}:${reference}`;
    result.notes.push(`${name} names ${present}, which was pushed later, and is kept`);
  }

  /** @throws CopyError conflict where tags of other content are an error */
  #refuse(reference: Reference, present: Digest, wanted: Digest, { to, existing, result }: Job): void {
    const name = `${this.#parts.target.name}/${to}:${reference}`;
    if (existing === "fail") {
      throw new CopyError("conflict", `${name} names ${present}, not ${wanted}: it is not replaced`);
    }
    result.notes.push(`${name} names ${present}, and is kept`);
  }
}

/** zot says no more than that where something is missing. */
function asMissing(error: unknown): { missing: Digest[]; cause: RemoteError } {
  if (error instanceof RemoteError && error.code === "MANIFEST_INVALID") return { missing: [], cause: error };
  throw error;
}
