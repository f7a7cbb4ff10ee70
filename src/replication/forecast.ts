/**
 * How many requests copying an image will take, by the same steps as the copy itself (`copy-image.ts`, `copy.ts`, `copy-content.ts`,
 * `copy-blobs.ts`): to be changed with them.
 *
 * It is exact where the target mounts, lists referrers by itself and repeats nothing. Not counted: logging in for tokens, redirects, further
 * pages of lists, further ranges of a large blob, and what turns out to refer to single platforms of an index.
 */
import type { ReplicationRule } from "../config/schema.ts";
import type { Digest } from "../oci/digest.ts";
import { isManifestType, ownBlobs, type Descriptor } from "../oci/manifest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { SourceContent } from "./content.ts";
import { chunksOf } from "./copy-blob.ts";
import { isChange } from "./copy-image.ts";
import type { IndexMode } from "./copy-job.ts";
import { KnownBlobs } from "./copy-known.ts";
import { chooseChildren, isStoredByTag, type ProvenManifest } from "./copy-manifests.ts";
import type { PlannedTag } from "./plan-tag.ts";
import { platformsOf } from "./rules.ts";

/** What a target has of what is to be copied. */
export interface TargetContent {
  hasManifest: (repository: RepositoryName, digest: Digest) => boolean;
  hasBlob: (repository: RepositoryName, digest: Digest) => boolean;
}

/** What copies read of their source, shared by all targets. */
export class SourceReads {
  readonly #keeps: ((repository: RepositoryName, digest: Digest) => Promise<boolean>) | undefined;
  readonly #read = new Set<string>();
  requests = 0;

  /** @param keeps undefined: nothing is kept, and each target's copy reads anew */
  constructor(keeps: ((repository: RepositoryName, digest: Digest) => Promise<boolean>) | undefined) {
    this.#keeps = keeps;
  }

  ask(requests: number): void {
    this.requests += requests;
  }

  /** One that the plan has read: where content is kept, it is here. */
  manifest(): void {
    if (!this.#keeps) this.requests++;
  }

  async blob(repository: RepositoryName, { digest, sizeBytes }: Descriptor): Promise<void> {
    if (sizeBytes === 0) return;
    if (this.#keeps) {
      const key = `${repository} ${digest}`;
      if (this.#read.has(key)) return;
      this.#read.add(key);
      if (await this.#keeps(repository, digest)) return;
    }
    this.requests++;
  }
}

interface Place {
  from: RepositoryName;
  to: RepositoryName;
}

interface Known {
  mode: IndexMode;
  isNew: boolean;
  byTag: boolean;
}

/** What a task asks anew before it copies. */
export function asksOfTask(
  { attached: { referrers, require } }: ReplicationRule,
  image: PlannedTag,
  companions: readonly PlannedTag[],
): { source: number; target: number } {
  const each = 1 + companions.length;
  const changes = image.action === "copy" || image.action === "replace";
  const asks = (referrers && image.rewritten === undefined) || (changes && require.length > 0);
  return { source: each + (asks ? 1 : 0), target: each + image.referrers.length };
}

/** What copies of one rule to one target will ask. */
export class CopyForecast {
  readonly #content: SourceContent;
  readonly #source: SourceReads;
  readonly #target: TargetContent;
  readonly #platforms: readonly string[];
  readonly #attends: boolean;
  readonly #blobs = new KnownBlobs();
  readonly #contents = new Map<string, Digest[]>();
  readonly #asked = new Set<string>();
  readonly #attended = new Set<string>();
  /** Of the target. */
  requests = 0;

  constructor(rule: ReplicationRule, content: SourceContent, source: SourceReads, target: TargetContent) {
    this.#content = content;
    this.#source = source;
    this.#target = target;
    this.#platforms = platformsOf(rule);
    this.#attends = rule.attached.referrers && rule.attached.digestTags;
  }

  /** @param staged its tag is moved at the end, with others @throws as {@link SourceContent.closure} */
  async image(place: Place, image: PlannedTag, companions: readonly PlannedTag[], staged: boolean): Promise<void> {
    const moves = isChange(image);
    const waits = staged && image.action !== "mark";
    let found: ProvenManifest | undefined;
    const withOthers = companions.length + image.referrers.length > 0;
    if (image.action === "mark" && withOthers) this.requests++;
    else if (moves && (waits || withOthers)) {
      found = await this.#read(place, image.digest);
      await this.#byDigest(place, image, found, true);
    }
    for (const one of companions) await this.#byTag(place, one, await this.#read(place, one.digest), false);
    for (const digest of image.referrers) {
      const referrer = await this.#read(place, digest);
      await this.#byDigest(place, { digest }, referrer, false);
    }
    if (!moves) return;
    if (image.action === "replace" && image.backup !== undefined) this.requests += 2;
    if (!waits) await this.#byTag(place, image, found ?? (await this.#read(place, image.digest)), true);
    // What it leads to is asked again, its manifest read there.
    else this.requests += 3;
  }

  async #read({ from }: Place, digest: Digest): Promise<ProvenManifest> {
    this.#source.manifest();
    return await this.#content.manifest(from, digest);
  }

  async #byDigest(
    place: Place,
    { digest, rewritten }: Pick<PlannedTag, "digest" | "rewritten">,
    found: ProvenManifest,
    isAttended: boolean,
  ): Promise<void> {
    if (this.#ask(place, rewritten ?? digest)) return;
    const mode = rewritten === undefined ? "sparse" : "rewrite";
    const isNew = mode === "sparse";
    const known = { mode, isNew, byTag: false } as const;
    await this.#attend(place, found, await this.#have(place, found, known), isAttended);
  }

  async #byTag(place: Place, planned: PlannedTag, found: ProvenManifest, isAttended: boolean): Promise<void> {
    const { action, rewritten } = planned;
    const mode = rewritten === undefined ? "sparse" : "rewrite";
    if (action === "mark") this.requests++;
    if (action !== "mark" || rewritten !== undefined) {
      const byTag = (isAttended || !this.#attends) && mode === "sparse" && isStoredByTag(found);
      const known = { mode, isNew: false, byTag } as const;
      await this.#attend(place, found, await this.#have(place, found, known), isAttended);
    }
    this.requests += 2;
  }

  /** @returns the digests of what is below */
  async #have(place: Place, found: ProvenManifest, known: Known): Promise<Digest[]> {
    const key = `${place.to} ${known.mode} ${found.digest}`;
    const before = this.#contents.get(key) ?? (known.byTag ? this.#contents.get(`${key} below`) : undefined);
    if (before) return before;
    const below = found.manifest.kind === "index" ? await this.#index(place, found, known) : [];
    if (found.manifest.kind !== "index") await this.#image(place, found, known);
    this.#contents.set(known.byTag ? `${key} below` : key, below);
    return below;
  }

  async #index(place: Place, index: ProvenManifest, { mode, isNew, byTag }: Known): Promise<Digest[]> {
    const { chosen } = chooseChildren(index.digest, index.manifest.manifests, this.#platforms);
    let areNew = false;
    if (mode !== "rewrite") areNew = isNew || (chosen.length > 1 && !this.#ask(place, index.digest));
    const below: Digest[] = [];
    for (const one of chosen) {
      if (!isManifestType(one.mediaType)) {
        await this.#blob(place, one);
        continue;
      }
      const known = { mode, isNew: areNew, byTag: false };
      if (!this.#contents.has(`${place.to} ${mode} ${one.digest}`)) this.#source.manifest();
      below.push(one.digest, ...(await this.#have(place, await this.#content.manifest(place.from, one.digest), known)));
    }
    if (!byTag) this.requests++;
    return below;
  }

  async #image(place: Place, { digest, manifest }: ProvenManifest, { isNew, byTag }: Known): Promise<void> {
    const blobs = [...new Map(ownBlobs(manifest).map((blob) => [blob.digest, blob])).values()];
    if (!isNew && manifest.subject === undefined) {
      if (this.#ask(place, digest)) {
        for (const blob of blobs) this.#blobs.add(place.to, blob.digest);
        return;
      }
    }
    for (const blob of blobs) await this.#blob(place, blob);
    if (!byTag) this.requests++;
  }

  async #blob({ from, to }: Place, blob: Descriptor): Promise<void> {
    const { digest, sizeBytes } = blob;
    const { step } = this.#blobs.step(to, digest);
    this.#blobs.add(to, digest);
    if (step === "nothing") return;
    // To mount it, or to ask for it.
    this.requests++;
    if (step === "mount" || this.#target.hasBlob(to, digest)) return;
    this.requests += 2 + chunksOf(sizeBytes);
    await this.#source.blob(from, blob);
  }

  /** What refers to a manifest and to what is below it is asked for, once. */
  async #attend({ from, to }: Place, { digest }: ProvenManifest, below: readonly Digest[], isAttended: boolean) {
    if (!this.#attends) return;
    for (const one of isAttended ? below : [digest, ...below]) {
      for (const key of [from, `${from} ${to} ${one}`]) {
        if (this.#attended.has(key)) continue;
        this.#attended.add(key);
        this.#source.ask(1);
      }
    }
  }

  /** Whether the target has a manifest: asked once. */
  #ask({ to }: Place, digest: Digest): boolean {
    const key = `${to} ${digest}`;
    if (!this.#asked.has(key)) this.requests++;
    this.#asked.add(key);
    return this.#target.hasManifest(to, digest);
  }
}
