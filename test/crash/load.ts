import assert from "node:assert/strict";
import type { Digest } from "../../src/oci/digest.ts";
import { digestOf } from "../../src/oci/digest.ts";
import {
  makeArtifact,
  makeImage,
  makeIndex,
  virtualBlob,
  type Content,
  type Image,
  type Published,
} from "../kit/images.ts";
import type { Answer } from "../kit/registry.ts";
import { WAYS, WrongAnswer, type PushClient, type Session } from "./client.ts";
import type { Ledger, Write } from "./ledger.ts";
import type { Random } from "./random.ts";

export const REPOSITORIES = ["team/one", "team/two", "other/deep/er/three"];
export const TAGS = ["latest", "stable", "1.0", "1.1", "nightly"];

/** What is pushed as a whole. */
export interface Item extends Published {
  /** Pushed before it, by digest. */
  readonly children: readonly Item[];
  readonly blobs: readonly Content[];
  readonly subject?: Digest;
}

/** The contents of a whole run: few, so that the same ones are pushed, deleted, mounted and collected at once. */
export function makeItems(random: Random): Item[] {
  const size = (): number => random.pick([1_500, 20_000, 70_000, 300_000, 2_500_000]);
  const shared = Array.from({ length: 4 }, (_, index) =>
    inMemory(virtualBlob(size(), `${random.seed}/shared/${index}`)),
  );
  const sharedLong = inMemory(virtualBlob(30_000, `${random.seed}/shared`, "sha512"));
  const images = Array.from({ length: 10 }, (_, index): Item => {
    const algorithm = index % 5 === 4 ? "sha512" : "sha256";
    const layers = [
      algorithm === "sha512" ? sharedLong : random.pick(shared),
      inMemory(virtualBlob(size(), `${random.seed}/${index}`, algorithm)),
    ];
    const mediaTypes = index % 3 === 2 ? "docker" : "oci";
    return itemOf(makeImage({ layers, seed: `${random.seed}/${index}`, algorithm, mediaTypes }));
  });
  const made = Array.from({ length: 4 }, (_, index) =>
    makeImage({ layers: [random.pick(shared), size()], seed: `${random.seed}/child/${index}` }),
  );
  const indexes = [0, 2].map((first): Item => {
    const children = made.slice(first, first + 2);
    const index = makeIndex(
      children.map((image, at) => [{ os: "linux", architecture: at === 0 ? "amd64" : "arm64" }, image]),
    );
    return { ...index, children: children.map(itemOf), blobs: [] };
  });
  const subject = images[0];
  assert.ok(subject);
  const artifact = makeArtifact({ subject, artifactType: "application/vnd.example.sbom", payload: random.seed });
  return [...images, ...indexes, { ...itemOf(artifact), subject: subject.digest }];
}

function itemOf(image: Image): Item {
  const { manifest, mediaType, digest } = image;
  return { manifest, mediaType, digest, children: [], blobs: [...image.blobs.values()].map(inMemory) };
}

/** Whoever sends it again and again need not generate it again and again. */
function inMemory(content: Content): Content {
  const { sizeBytes, digest, bytes } = content;
  return { sizeBytes, digest, bytes, chunks: (from, end) => [bytes.subarray(from, end)] };
}

/** What a run does to the registry, and what it knows of it. Outlives any number of daemons. */
export interface World {
  readonly items: readonly Item[];
  readonly ledger: Ledger;
  /** Contents of blobs that no manifest refers to, by digest. */
  readonly loose: Map<Digest, Content>;
  readonly sessions: Set<Session>;
  /** Uploads that were asked for and never told of: nobody can end them. */
  lostUploads: number;
}

export type Counts = Record<"pushes" | "pulls" | "deletes" | "collections" | "mounts", number>;

/** How often an image is pushed anew whose blobs are collected before its manifest comes. */
const TRIES = 20;

/**
 * One client that does one random thing after the other.
 * @throws AssertionError: what was pulled can't be; WrongAnswer: a change did not succeed; any other error: the connection broke
 */
export class Worker {
  readonly #world: World;
  readonly #client: PushClient;
  readonly #random: Random;
  readonly #counts: Counts;

  constructor(world: World, client: PushClient, random: Random, counts: Counts) {
    this.#world = world;
    this.#client = client;
    this.#random = random;
    this.#counts = counts;
  }

  /** Does nothing but collect garbage. */
  async collect(): Promise<void> {
    if (await this.#client.run("gc")) this.#counts.collections++;
  }

  async step(): Promise<void> {
    const random = this.#random;
    const repository = random.pick(REPOSITORIES);
    const item = random.pick(this.#world.items);
    const tag = random.pick(TAGS);
    await random.weighted([
      [34, () => this.#push(repository, item, random.some(TAGS))],
      [22, () => this.#pull(repository, tag)],
      [8, () => this.#deleteTag(repository, tag)],
      [20, () => this.#deleteManifest(repository, item.digest)],
      [8, () => this.#pushLoose(repository)],
      [6, () => this.#deleteLoose(repository)],
      [4, () => this.#trickle(repository)],
      [6, () => this.collect()],
    ]);
  }

  async #push(repository: string, item: Item, tags: readonly string[]): Promise<void> {
    const { ledger } = this.#world;
    for (let tries = 1; ; tries++) {
      for (const child of item.children) await this.#push(repository, child, []);
      for (const content of this.#random.shuffled(item.blobs)) await this.#bring(repository, content);
      const writes = [
        ledger.manifest(repository, item.digest).write(item.digest),
        ...tags.map((tag) => ledger.tag(repository, tag).write(item.digest)),
      ];
      const byTag = tags.length === 1 && item.digest.startsWith("sha256:");
      const answer = await this.#client.putManifest(
        repository,
        item,
        byTag ? (tags[0] ?? "") : item.digest,
        byTag ? [] : tags,
      );
      if (answer.status === 201) {
        end(writes, "acknowledge");
        assert.equal(answer.headers["docker-content-digest"], item.digest);
        this.#counts.pushes++;
        return;
      }
      // Whether it took effect is for others to find out.
      if (answer.status >= 500) throw new WrongAnswer(`push ${repository} ${item.digest}`, answer);
      end(writes, "refuse");
      const missing = answer.bytes.includes("MANIFEST_BLOB_UNKNOWN");
      if (!missing || tries === TRIES) throw new WrongAnswer(`push ${repository} ${item.digest}, try ${tries}`, answer);
    }
  }

  /** Sees to it that a repository has a blob, as clients do: look, mount or push. */
  async #bring(repository: string, content: Content): Promise<void> {
    const { sessions } = this.#world;
    const random = this.#random;
    if (random.chance(0.5)) {
      const head = await this.#client.send("HEAD", `/v2/${repository}/blobs/${content.digest}`);
      if (head.status === 200) return;
      if (head.status !== 404) throw new WrongAnswer(`HEAD ${repository} ${content.digest}`, head);
    }
    await this.#asking(async () => {
      if (!random.chance(0.3)) return this.#client.pushBlob(repository, content, random.pick(WAYS), sessions);
      const mounted = await this.#client.mountBlob(repository, content, random.pick(REPOSITORIES), sessions);
      if (mounted) this.#counts.mounts++;
    });
  }

  /** Where the connection breaks, an upload may have been begun whose address never came. */
  async #asking(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#world.lostUploads++;
      throw error;
    }
  }

  async #pull(repository: string, tag: string): Promise<void> {
    const { ledger, items } = this.#world;
    const tagRead = ledger.tag(repository, tag).read();
    const answer = await this.#client.get(`/v2/${repository}/manifests/${tag}`);
    const digest = digestIn(answer, `${repository}:${tag}`);
    assert.ok(tagRead.allows(digest), `${repository}:${tag} is ${digest ?? "absent"}, which it can't be`);
    this.#counts.pulls++;
    const item = items.find((item) => item.digest === digest);
    if (!item) return;
    assert.deepEqual(answer.bytes, item.manifest);
    const manifestRead = ledger.manifest(repository, item.digest).read();
    for (const content of item.blobs) {
      const blob = await this.#client.get(`/v2/${repository}/blobs/${content.digest}`);
      if (blob.status === 200) assert.ok(blob.bytes.equals(content.bytes), `wrong bytes of ${content.digest}`);
      else if (blob.status !== 404 || !manifestRead.allows(undefined)) {
        assert.fail(new WrongAnswer(`GET ${repository} ${content.digest}, a blob of ${item.digest}`, blob).message);
      }
    }
  }

  async #deleteTag(repository: string, tag: string): Promise<void> {
    const register = this.#world.ledger.tag(repository, tag);
    const read = register.read();
    const write = register.write(undefined);
    await this.#delete(`/v2/${repository}/manifests/${tag}`, [write], () => read.allows(undefined));
  }

  async #deleteManifest(repository: string, digest: Digest): Promise<void> {
    const { ledger } = this.#world;
    const register = ledger.manifest(repository, digest);
    const read = register.read();
    const writes = [
      register.write(undefined),
      ...TAGS.map((tag) => ledger.tag(repository, tag).write(undefined, digest)),
    ];
    await this.#delete(`/v2/${repository}/manifests/${digest}`, writes, () => read.allows(undefined));
  }

  async #pushLoose(repository: string): Promise<void> {
    const { ledger, loose, sessions } = this.#world;
    const content = inMemory(virtualBlob(this.#random.pick([3_000, 50_000]), `loose ${this.#random.below(8)}`));
    loose.set(content.digest, content);
    const write = ledger.looseBlob(repository, content.digest).write(content.digest);
    await this.#asking(() => this.#client.pushBlob(repository, content, this.#random.pick(WAYS), sessions));
    write.acknowledge();
  }

  async #deleteLoose(repository: string): Promise<void> {
    const { ledger, loose } = this.#world;
    const digests = [...loose.keys()];
    if (digests.length === 0) return;
    const digest = this.#random.pick(digests);
    const write = ledger.looseBlob(repository, digest).write(undefined);
    // It may have been collected: nothing refers to it.
    await this.#delete(`/v2/${repository}/blobs/${digest}`, [write], () => true);
  }

  async #delete(path: string, writes: Write[], mayBeAbsent: () => boolean): Promise<void> {
    const answer = await this.#client.send("DELETE", path);
    if (answer.status === 202) {
      end(writes, "acknowledge");
      this.#counts.deletes++;
      return;
    }
    if (answer.status < 500) end(writes, "refuse");
    if (answer.status !== 404 || !mayBeAbsent()) throw new WrongAnswer(`DELETE ${path}`, answer);
  }

  /** Leaves an upload half way. */
  async #trickle(repository: string): Promise<void> {
    const { sessions } = this.#world;
    const content = inMemory(virtualBlob(100_000, `trickle ${this.#random.below(1_000_000)}`));
    await this.#asking(async () => {
      const session = await this.#client.open(repository, content);
      sessions.add(session);
      for (let end = 20_000; end < 100_000; end += 20_000) {
        await this.#client.append(session, end, this.#random.pick(["ranged", "streamed"]));
      }
    });
  }
}

function end(writes: readonly Write[], how: "acknowledge" | "refuse"): void {
  for (const write of writes) write[how]();
}

/** The digest of a manifest that was answered, proven; undefined for a 404. */
export function digestIn(answer: Answer, what: string): Digest | undefined {
  if (answer.status === 404) return undefined;
  if (answer.status !== 200) assert.fail(new WrongAnswer(`GET ${what}`, answer).message);
  const told = String(answer.headers["docker-content-digest"]);
  const digest = digestOf(answer.bytes, told.startsWith("sha512:") ? "sha512" : "sha256");
  assert.equal(digest, told, `${what} is not what its digest says`);
  return digest;
}
