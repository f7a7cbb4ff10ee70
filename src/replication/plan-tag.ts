/** What becomes of one tag at one target: asked anew, of both sides, whenever it is about to be copied. */
import type { Milliseconds } from "../base/clock.ts";
import type { ReplicationRule } from "../config/schema.ts";
import type { Digest } from "../oci/digest.ts";
import type { Origin, Told } from "../oci/origin.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { SourceContent } from "./content.ts";
import type { PlanRegistry } from "./plan-registry.ts";
import { judgePushes, judgeTag, type Verdict } from "./rules.ts";
import { tooOld, usualDigestTags, type DigestTags, type DroppedTag, type SelectedTag } from "./tag-filter.ts";

/** `withhold`: it lacks what `attached.require` names. */
export type PlannedTag = {
  tag: Tag;
  digest: Digest;
  /** What the tag is to lead to at the target, where its index is rewritten; else that is `digest`. */
  rewritten?: Digest;
  /** The push that has brought the source's tag to it, where the source tells. */
  origin?: Origin | undefined;
  /** Why the rule is about it. */
  why: string;
  /** What refers to it and is not at the target. */
  referrers: Digest[];
  /** Of a tag that comes along with an image: the image. */
  companionOf?: Digest;
} & (Verdict | { action: "withhold"; because: string });

const SIGNATURES: ReadonlySet<string> = new Set([
  "application/vnd.dev.cosign.artifact.sig.v1+json",
  "application/vnd.dev.sigstore.bundle.v0.3+json",
  "application/vnd.cncf.notary.signature",
]);

/** A repository of the source, as far as one of its tags needs it. */
export interface TagSource {
  name: RepositoryName;
  /** Its tags that are named after images; undefined: they were not asked for. */
  named: DigestTags | undefined;
  /** All its tags that are named after digests, lists of referrers, too; undefined: one of these is asked for. */
  listed: DigestTags | undefined;
  /** Whether the rule copies a tag of it. */
  copies: (tag: Tag) => boolean | Promise<boolean>;
}

/** A place where copies of a source repository go. */
export interface TargetRepository {
  registry: PlanRegistry;
  name: RepositoryName;
  dropped: DroppedTag[];
  /** Images whose companions some tag has brought: another tag of the same image need not. */
  attended: Set<Digest>;
}

export interface TagPlanOptions {
  nowMs: Milliseconds;
  signal: AbortSignal;
  /** Does work whose failure is that of one tag alone. @returns undefined where that is told elsewhere */
  attempt: <T>(where: string, work: () => Promise<T>) => Promise<T | undefined>;
}

export class TagPlans {
  readonly #rule: ReplicationRule;
  readonly #source: PlanRegistry;
  readonly #content: SourceContent;
  readonly #options: TagPlanOptions;

  constructor(rule: ReplicationRule, source: PlanRegistry, content: SourceContent, options: TagPlanOptions) {
    this.#rule = rule;
    this.#source = source;
    this.#content = content;
    this.#options = options;
  }

  /** What a tag of the source leads to. @throws RemoteError; Error where it is not there */
  async headSource(name: RepositoryName, tag: Tag): Promise<Told> {
    const told = await this.toldBySource(name, tag);
    if (told === undefined) throw new Error(`${this.#source.name} does not have ${name}:${tag}`);
    return told;
  }

  /** @returns undefined: it is not there */
  async toldBySource(name: RepositoryName, tag: Tag): Promise<Told | undefined> {
    const head = await this.#head(this.#source, name, tag);
    return head === null ? { digest: await this.#content.digestOf(name, tag) } : head;
  }

  /** @returns undefined: it is not there; null: it is, and its digest was not told */
  async #head(registry: PlanRegistry, name: RepositoryName, tag: Tag): Promise<Told | null | undefined> {
    const { queue, remote } = registry;
    const head = await queue.add(() => remote.headManifest(name, tag, { signal: this.#options.signal }));
    if (head === undefined || head === "notModified") return undefined;
    const { digest, origin } = head;
    return digest === undefined ? null : { digest, origin };
  }

  /** A tag that was selected, and those that are named after its digest; none where it is too old. */
  async plan(source: TagSource, selected: SelectedTag, told: Told, target: TargetRepository): Promise<PlannedTag[]> {
    const { tag, why } = selected;
    const { digest, origin } = told;
    const found = await this.#options.attempt(`${source.name}:${tag}`, async (): Promise<PlannedTag[]> => {
      const atTarget = await this.#content.atTarget(source.name, digest);
      const verdict = await this.#judge(source, tag, { digest: atTarget, origin }, target);
      const changes = verdict.action === "copy" || verdict.action === "replace";
      if (changes && this.#rule.tags.maxAge > 0 && !selected.always) {
        const madeAtMs = await this.#content.madeAt(source.name, digest);
        const old = tooOld(selected, this.#rule.tags, madeAtMs, this.#options.nowMs);
        if (old) {
          target.dropped.push(old);
          return [];
        }
      }
      const planned = { tag, digest, origin, why, ...(atTarget === digest ? {} : { rewritten: atTarget }) };
      const { referrers: withReferrers, digestTags, require } = this.#rule.attached;
      const needsSignature = changes && require.includes("signature");
      // What refers to an index that is rewritten refers to nothing that the target has.
      const attends =
        atTarget === digest &&
        (changes || verdict.action === "same" || verdict.action === "mark") &&
        !target.attended.has(digest);
      if (attends) target.attended.add(digest);
      const named = await this.#namedAfter(source, digest, (attends && digestTags) || needsSignature);
      const asks = needsSignature || (attends && withReferrers);
      const referrers = asks ? await this.#content.referrers(source.name, digest, source.listed) : [];
      const isSigned =
        named.some((one) => one.endsWith(".sig")) ||
        referrers.some(({ artifactType }) => SIGNATURES.has(artifactType ?? ""));
      if (needsSignature && !isSigned) {
        return [{ ...planned, action: "withhold", because: "it has no signature", referrers: [] }];
      }
      const digests = attends && withReferrers ? referrers.map((one) => one.digest) : [];
      const missing = await this.missing(target, digests);
      const companions = await Promise.all(
        (attends && digestTags ? named : []).map((one) => this.#companion(source, one, { tag, digest }, target)),
      );
      return [{ ...planned, referrers: missing, ...verdict }, ...companions.flat()];
    });
    return found ?? [];
  }

  async #namedAfter({ name, named }: TagSource, digest: Digest, isNeeded: boolean): Promise<readonly Tag[]> {
    if (!isNeeded) return [];
    if (named) return named.of(digest);
    const names = usualDigestTags(digest);
    const found = await Promise.all(names.map((tag) => this.toldBySource(name, tag)));
    return names.filter((_, index) => found[index] !== undefined);
  }

  async #companion(
    source: TagSource,
    tag: Tag,
    image: { tag: Tag; digest: Digest },
    target: TargetRepository,
  ): Promise<PlannedTag[]> {
    const planned = await this.#options.attempt(`${source.name}:${tag}`, async (): Promise<PlannedTag> => {
      const told = await this.headSource(source.name, tag);
      const verdict = await this.#judge(source, tag, told, target);
      return { tag, ...told, why: `belongs to ${image.tag}`, referrers: [], companionOf: image.digest, ...verdict };
    });
    return planned ? [planned] : [];
  }

  async #judge(source: TagSource, tag: Tag, told: Told, { registry, name }: TargetRepository): Promise<Verdict> {
    const there = await this.#head(registry, name, tag);
    if (there === null) throw new Error(`${registry.name} does not tell what ${name}:${tag} points to`);
    const byRule = judgeTag(tag, told.digest, there?.digest, this.#rule.write);
    const verdict = judgePushes(byRule, told, there, this.#options.nowMs);
    if (verdict.action !== "replace" || !verdict.backup) return verdict;
    if (!(await source.copies(verdict.backup))) return verdict;
    return { action: "fail", was: verdict.was, because: `its backup ${verdict.backup} is a tag that is copied, too` };
  }

  /** Those manifests that a target does not have. */
  async missing(
    { registry: { queue, remote }, name }: Pick<TargetRepository, "registry" | "name">,
    digests: readonly Digest[],
  ): Promise<Digest[]> {
    const heads = await Promise.all(
      digests.map((digest) => queue.add(() => remote.headManifest(name, digest, { signal: this.#options.signal }))),
    );
    return digests.filter((_, index) => heads[index] === undefined);
  }
}
