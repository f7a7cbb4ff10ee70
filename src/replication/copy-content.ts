/**
 * Manifests with all below them: read from the source, proven, and put at the target once what they lead to is there.
 *
 * Invariants
 * - Blobs and children come before what names them.
 * - What several images share is copied once.
 * - What the target turns out not to have is brought again, once.
 */
import PQueue from "p-queue";
import type { Digest } from "../oci/digest.ts";
import { isManifestType, ownBlobs, type Descriptor } from "../oci/manifest.ts";
import { RemoteError } from "../remote/remote-error.ts";
import type { BlobCopies } from "./copy-blobs.ts";
import { CopyError } from "./copy-error.ts";
import { allOf, type CopyOptions, type CopySource, type IndexMode, type Job, type Node } from "./copy-job.ts";
import { chooseChildren, proveManifest, type Pointer, type ProvenManifest } from "./copy-manifests.ts";
import type { Again } from "./copy-retry.ts";
import type { TargetManifests } from "./copy-target.ts";
import { rewriteIndex } from "./rewrite.ts";

/** What is known of a manifest before it is copied. */
interface Circumstances {
  found: ProvenManifest | undefined;
  /** The target does not have it for certain. */
  isNew: boolean;
  /** It is stored with its tag: only what is below it is brought. */
  byTag: boolean;
  /** The target was wrong about what it has: it is not asked. */
  doubted: boolean;
}

const ASKED: Circumstances = { found: undefined, isNew: false, byTag: false, doubted: false };

interface ContentCopiesParts {
  source: CopySource;
  options: Pick<CopyOptions, "platforms" | "concurrency">;
  manifests: TargetManifests;
  blobs: BlobCopies;
  again: Again;
}

export class ContentCopies {
  readonly #source: CopySource;
  readonly #platforms: readonly string[];
  readonly #manifests: TargetManifests;
  readonly #blobs: BlobCopies;
  readonly #again: Again;
  readonly #images: PQueue;
  /** By repository and digest. A failed one is forgotten: the next image may fare better. */
  readonly #contents = new Map<string, Promise<Node>>();

  constructor({ source, options, manifests, blobs, again }: ContentCopiesParts) {
    this.#source = source;
    this.#platforms = options.platforms;
    this.#manifests = manifests;
    this.#blobs = blobs;
    this.#again = again;
    this.#images = new PQueue({ concurrency: options.concurrency });
  }

  /** Reads a manifest of the source, and proves it. @throws CopyError missing, wrong; RemoteError; RegistryError MANIFEST_INVALID */
  async read({ from, signal }: Pick<Job, "from" | "signal">, pointer: Pointer): Promise<ProvenManifest> {
    const { digest } = pointer;
    const where = `${this.#source.name}/${from}`;
    const got = await this.#again(() => this.#source.getManifest(from, digest, { signal }), signal);
    if (!got) throw new CopyError("missing", `${where}@${digest} does not exist`);
    return proveManifest(where, pointer, got);
  }

  /** Has a manifest and all below it at the target. @throws as {@link read}; CopyError platform, sparse */
  bring(
    job: Job,
    pointer: Pointer,
    mode: IndexMode,
    known: Partial<Omit<Circumstances, "doubted">> = {},
  ): Promise<Node> {
    const circumstances = { ...ASKED, ...known };
    const key = `${job.to} ${mode} ${pointer.digest}`;
    const before = this.#contents.get(key) ?? (circumstances.byTag ? this.#contents.get(`${key} below`) : undefined);
    if (before) return before;
    return this.#remember(circumstances.byTag ? `${key} below` : key, this.#copy(job, pointer, mode, circumstances));
  }

  /** As {@link bring}, where the target was wrong about what it has. */
  async bringAgain(job: Job, found: ProvenManifest): Promise<void> {
    await this.#copy(job, found, "sparse", { ...ASKED, found, doubted: true });
  }

  #remember(key: string, work: Promise<Node>): Promise<Node> {
    this.#contents.set(key, work);
    work.catch(() => this.#contents.delete(key));
    return work;
  }

  async #copy(job: Job, pointer: Pointer, mode: IndexMode, circumstances: Circumstances): Promise<Node> {
    const proven = circumstances.found ?? (await this.read(job, pointer));
    if (proven.manifest.kind === "index") return await this.#copyIndex(job, proven, mode, circumstances);
    return await this.#images.add(() => this.#copyImage(job, proven, circumstances));
  }

  async #copyIndex(job: Job, index: ProvenManifest, mode: IndexMode, circumstances: Circumstances): Promise<Node> {
    const where = `${this.#source.name}/${job.from}@${index.digest}`;
    const platforms = mode === "all" ? [] : this.#platforms;
    const { chosen, left } = chooseChildren(where, index.manifest.manifests, platforms);
    const absent: Descriptor[] = [];
    const nested = new Map<Digest, ProvenManifest>();
    const isNew = await this.#areNew(job, index, mode, chosen.length, circumstances.isNew);
    const child = async (one: Descriptor): Promise<Node[]> => {
      if (!isManifestType(one.mediaType)) {
        // Caches of builds list layers as if they were manifests.
        await this.#blobs.bring(job, one);
        return [];
      }
      try {
        const node = await this.bring(job, one, mode, { isNew });
        if (node.made) nested.set(one.digest, node.made);
        return [node];
      } catch (error) {
        if (!(error instanceof CopyError && error.fault === "missing" && error.message.includes(one.digest)))
          throw error;
        absent.push(one);
        job.result.notes.push(`${one.digest} of the index ${where} is not at the source, and so not in the copy`);
        return [];
      }
    };
    const children = (await allOf(chosen.map(child))).flat();
    const stored = mode === "rewrite" ? rewriteIndex(index, chosen, nested) : index;
    const node: Node = { digest: stored.digest, children, ...(stored === index ? {} : { made: stored }) };
    if (circumstances.byTag) return node;
    const lacking = [...(stored === index ? left : []), ...absent];
    try {
      await this.#manifests.put(job, stored, async (missing, cause) => {
        const isMissing = ({ digest }: Descriptor) => missing.length === 0 || missing.includes(digest);
        if (lacking.some(isMissing)) throw sparseRefused(cause);
        await allOf(chosen.filter(isMissing).map((one) => this.#copy(job, one, mode, { ...ASKED, doubted: true })));
      });
    } catch (error) {
      // zot says no more than that.
      if (lacking.length > 0 && error instanceof RemoteError && error.code === "MANIFEST_INVALID") {
        throw sparseRefused(error);
      }
      throw error;
    }
    return node;
  }

  /** Whether the target lacks the children of an index, most likely: one question about the index spares one about each. */
  async #areNew(job: Job, index: ProvenManifest, mode: IndexMode, children: number, isNew: boolean): Promise<boolean> {
    if (mode === "rewrite") return false;
    if (isNew || children < 2) return isNew;
    return !(await this.#manifests.has(job.to, index.digest, job.signal));
  }

  async #copyImage(job: Job, image: ProvenManifest, { isNew, byTag, doubted }: Circumstances): Promise<Node> {
    const { digest, manifest } = image;
    const blobs = [...new Map(ownBlobs(manifest).map((blob) => [blob.digest, blob])).values()];
    // Whether a referrer is listed, only the answer to its push tells.
    const askFirst = !doubted && !isNew && manifest.subject === undefined;
    if (askFirst && (await this.#manifests.has(job.to, digest, job.signal))) {
      this.#blobs.present(job, blobs);
      return { digest, children: [] };
    }
    await this.#blobs.bringAll(job, blobs);
    if (byTag) return { digest, children: [] };
    await this.#manifests.put(job, image, async (missing) => {
      const lost = blobs.filter((blob) => missing.length === 0 || missing.includes(blob.digest));
      await allOf(lost.map((blob) => this.#blobs.bring(job, blob, true)));
    });
    return { digest, children: [] };
  }
}

function sparseRefused(cause: RemoteError): CopyError {
  const remedy = "copy all, or let a rule make a smaller one with platforms.index: rewrite";
  return new CopyError("sparse", `${cause.message}: it takes no index without all of its platforms; ${remedy}`, {
    cause,
  });
}
