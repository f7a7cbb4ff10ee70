/** The manifests of a copy's target: whether they are there, and how they come there. */
import type { Turns } from "../base/turns.ts";
import type { Digest } from "../oci/digest.ts";
import type { Told } from "../oci/origin.ts";
import { isTag, referrersTag, type Reference } from "../oci/reference.ts";
import type { RemoteError } from "../remote/remote-error.ts";
import type { Target } from "../remote/target.ts";
import type { Job } from "./copy-job.ts";
import { addReferrer, type ProvenManifest } from "./copy-manifests.ts";
import type { Again } from "./copy-retry.ts";
import { toldAt } from "./tags-at.ts";

interface TargetManifestsParts {
  target: Target;
  dryRun: boolean;
  turns: Turns;
  again: Again;
}

export class TargetManifests {
  readonly #target: Target;
  readonly #dryRun: boolean;
  readonly #turns: Turns;
  readonly #again: Again;
  /** By repository and digest. */
  readonly #there = new Map<string, Promise<boolean>>();

  constructor({ target, dryRun, turns, again }: TargetManifestsParts) {
    this.#target = target;
    this.#dryRun = dryRun;
    this.#turns = turns;
    this.#again = again;
  }

  /** What a tag leads to, asked each time; of a digest, whether it is there, as {@link has}. @throws RemoteError */
  async stateAt(repository: string, reference: Reference, signal: AbortSignal): Promise<Told | undefined> {
    if (isTag(reference)) return await this.#ask(repository, reference, signal);
    return (await this.has(repository, reference, signal)) ? { digest: reference } : undefined;
  }

  /** Asked once: what is copied since is known. @throws RemoteError */
  async has(repository: string, digest: Digest, signal: AbortSignal): Promise<boolean> {
    const key = `${repository} ${digest}`;
    const known = this.#there.get(key);
    if (known) return await known;
    const asking = this.#ask(repository, digest, signal).then((present) => present?.digest === digest);
    this.#there.set(key, asking);
    asking.catch(() => this.#there.delete(key));
    return await asking;
  }

  async #ask(repository: string, reference: Reference, signal: AbortSignal): Promise<Told | undefined> {
    return await this.#again(() => toldAt(this.#target, repository, reference, signal), signal);
  }

  /**
   * Puts a manifest by its digest, and has it listed where it refers to another one.
   * @param repair is told what the target lacks, and brings it; nothing named: it does not say
   * @throws RemoteError; what `repair` throws
   */
  async put(
    job: Job,
    proven: ProvenManifest,
    repair: (missing: Digest[], cause: RemoteError) => Promise<void>,
  ): Promise<void> {
    if (this.#dryRun) return;
    const { digest, bytes, manifest } = proven;
    const { to, signal } = job;
    const put = () =>
      this.#again(
        () => this.#target.putManifest(to, digest, { bytes, mediaType: manifest.mediaType }, { signal }),
        signal,
      );
    let stored = await put();
    if (stored.missing) {
      await repair(stored.missing, stored.cause);
      stored = await put();
    }
    if (stored.missing) throw stored.cause;
    if (manifest.subject && !stored.listed) await this.#list(job, manifest.subject.digest, proven);
  }

  /** Lists a referrer under the fallback tag of its subject, where the target has no API for that. */
  async #list({ to, signal }: Job, subject: Digest, referrer: ProvenManifest): Promise<void> {
    const tag = referrersTag(subject);
    const key = `${this.#target.name} ${to}:${tag}`;
    const merge = async (): Promise<void> => {
      const present = await this.#again(() => this.#target.getManifest(to, tag, { signal }), signal);
      const merged = addReferrer(present?.bytes, referrer);
      if (!merged) return;
      const stored = await this.#again(() => this.#target.putManifest(to, tag, merged, { signal }), signal);
      if (stored.missing) throw stored.cause;
    };
    // Merges into one fallback tag come one after the other.
    await this.#turns.take(key, merge, signal);
  }
}
