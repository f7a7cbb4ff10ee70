import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { makeImage, virtualBlob, type Content, type Image } from "../kit/images.ts";
import { startRegistry, until } from "../kit/registry.ts";
import { DAY, MovingClock } from "../registry/clients.ts";
import { PushClient, WAYS } from "./client.ts";
import { Random } from "./random.ts";
import {
  assertBlob,
  assertImage,
  assertSound,
  blobPath,
  makeStorage,
  Metadata,
  MIB,
  run,
  sizeOf,
  storedDigests,
  type Running,
} from "./stage.ts";
import { inject, type Attached } from "./strace.ts";

const [ONE, TWO] = ["team/one", "team/two"] as const;

test("two pushes of one tag at once: both are stored, one has the tag, and its bytes are what its digest says, also meanwhile", async () => {
  await using registry = await startRegistry();
  await using client = new PushClient(registry.url);
  const images = ["a", "b"].map((seed) => makeImage({ layers: [1000], seed })) as [Image, Image];
  for (const image of images) await client.pushImage(ONE, "first", image);
  const digests = images.map(({ digest }) => digest as string);
  for (let round = 0; round < 25; round++) {
    const tag = `round-${round}`;
    const put = async (image: Image): Promise<number> => (await client.putManifest(ONE, image, tag)).status;
    const pull = async (): Promise<string | undefined> => {
      const answer = await client.get(`/v2/${ONE}/manifests/${tag}`);
      if (answer.status === 404) return undefined;
      const digest = String(answer.headers["docker-content-digest"]);
      assert.equal(digestOf(answer.bytes), digest);
      assert.ok(digests.includes(digest));
      return digest;
    };
    const [first, second] = await Promise.all([put(images[0]), put(images[1]), pull(), pull(), pull()]);
    assert.deepEqual([first, second], [201, 201]);
    const winner = await pull();
    assert.ok(winner !== undefined);
    assert.equal(await pull(), winner);
    const head = await client.send("HEAD", `/v2/${ONE}/manifests/${tag}`);
    assert.equal(head.headers["docker-content-digest"], winner);
  }
  for (const image of images) await assertImage(client, ONE, image.digest, image);
});

test("two pushes of a tag that must not exist: exactly one succeeds", async () => {
  await using registry = await startRegistry();
  await using client = new PushClient(registry.url);
  const images = ["a", "b"].map((seed) => makeImage({ layers: [1000], seed }));
  for (const image of images) await client.pushImage(ONE, "first", image);
  for (let round = 0; round < 25; round++) {
    const answers = await Promise.all(
      images.map((image) => {
        const headers = { "content-type": image.mediaType, "if-none-match": "*" };
        return client.send("PUT", `/v2/${ONE}/manifests/new-${round}`, headers, image.manifest);
      }),
    );
    assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([201, 412]));
    const won = images[answers.findIndex(({ status }) => status === 201)];
    assert.ok(won);
    await assertImage(client, ONE, `new-${round}`, won);
  }
});

/** A daemon whose collection has just taken the row of a blob, and waits before it takes the file. */
async function startCollecting(
  root: string,
  image: Image,
): Promise<Running & { collected: Promise<unknown>; strace: Attached }> {
  await using stack = new AsyncDisposableStack();
  const running = stack.use(await run(root));
  const { client, daemon } = running;
  const [layer] = image.layers;
  assert.ok(layer);
  await client.pushBlob(ONE, layer, "monolithic");
  const path = blobPath(root, layer.digest);
  const strace = stack.use(await inject(daemon.pid, { calls: "unlink,rename", effect: "delay_enter=700ms", path }));
  const collected = client.run("gc");
  using metadata = new Metadata(root);
  await until(() => !metadata.column("SELECT digest FROM blobs").includes(layer.digest), "the row is gone");
  assert.ok((await sizeOf(path)) > 0, "the file is there");
  const owned = stack.move();
  return { ...running, collected, strace, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

for (const way of ["monolithic", "single"] as const) {
  test(`a blob is pushed (${way}) while the collection is about to take its file: the blob survives`, async () => {
    await using storage = await makeStorage();
    const { root } = storage;
    const image = makeImage({ layers: [MIB], seed: "collected" });
    await using running = await startCollecting(root, image);
    const { client } = running;
    for (const content of image.blobs.values()) await client.pushBlob(TWO, content, way);
    assert.equal((await client.putManifest(TWO, image, "1")).status, 201);
    await running.collected;
    await running.strace.detach();
    await assertImage(client, TWO, "1", image);
    await assertSound(client, root);
  });
}

test("a blob is mounted while the collection is about to take its file: mounted, it stays; else the client is asked to send it", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  const image = makeImage({ layers: [MIB], seed: "collected" });
  await using running = await startCollecting(root, image);
  const { client } = running;
  for (const content of image.blobs.values()) await client.mountBlob(TWO, content, ONE);
  assert.equal((await client.putManifest(TWO, image, "1")).status, 201);
  await running.collected;
  await running.strace.detach();
  await assertImage(client, TWO, "1", image);
  await assertSound(client, root);
});

test("what a client was told is there outlives the collection that runs meanwhile", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  const config = { gc: { interval: "0s" } };
  const blobs = Array.from({ length: 150 }, (_, index) => virtualBlob(2_000, `told ${index}`));
  {
    // Nothing refers to them, and their time is up two days later.
    const clock = new MovingClock();
    clock.offsetMs = -2 * DAY;
    await using registry = await startRegistry({ root, clock, config });
    await using client = new PushClient(registry.url);
    await Promise.all(blobs.map((content) => client.pushBlob(ONE, content, "single")));
  }
  await using registry = await startRegistry({ root, config });
  await using client = new PushClient(registry.url);
  const random = new Random("told");
  const isIn = async (repository: string, { digest }: Content): Promise<boolean> =>
    (await client.send("HEAD", `/v2/${repository}/blobs/${digest}`)).status === 200;
  const asked = random.shuffled(blobs).slice(0, 100);
  const told: [repository: string, content: Content][] = [];
  const asking = asked.map(async (content) => {
    const repository = await random.weighted<Promise<string | undefined>>([
      [3, async () => ((await isIn(ONE, content)) ? ONE : undefined)],
      [2, () => client.mountBlob(TWO, content, ONE).then(() => TWO)],
      [1, () => client.pushBlob(TWO, content, random.pick(WAYS)).then(() => TWO)],
    ]);
    if (repository) told.push([repository, content]);
  });
  await Promise.all([client.run("gc"), ...asking]);
  for (const [repository, content] of told) await assertBlob(client, repository, content);
  await client.run("gc");
  for (const [repository, content] of told) await assertBlob(client, repository, content);
  const others = blobs.filter((content) => !asked.includes(content));
  for (const content of others) assert.equal(await isIn(ONE, content), false, "nobody asked for it");
});

test("images are pushed, deleted and collected at once: a manifest that was acknowledged has all its blobs", async () => {
  await using storage = await makeStorage();
  await using running = await run(storage.root);
  const { client } = running;
  const shared = virtualBlob(3_000, "shared");
  const images = Array.from({ length: 4 }, (_, seed) => makeImage({ layers: [shared, 1000], seed }));
  const over = new AbortController();
  const collections = (async () => {
    let count = 0;
    for (; !over.signal.aborted; count++) await client.run("gc");
    return count;
  })();
  const push = async (image: Image): Promise<void> => {
    for (let round = 0; round < 15; round++) {
      // A blob may be collected before its manifest comes: then it is pushed again, as clients do.
      await until(async () => {
        for (const content of image.blobs.values()) await client.pushBlob(ONE, content, "single");
        return (await client.putManifest(ONE, image, image.digest.slice(-8))).status === 201;
      }, "the image is pushed");
      await assertImage(client, ONE, image.digest, image);
      const deleted = await client.send("DELETE", `/v2/${ONE}/manifests/${image.digest}`);
      assert.equal(deleted.status, 202);
      assert.equal((await client.get(`/v2/${ONE}/manifests/${image.digest}`)).status, 404);
    }
  };
  try {
    await Promise.all(images.map(push));
  } finally {
    over.abort();
  }
  assert.ok((await collections) > 3);
  // What was pulled a moment ago counts as used when the first of them begins.
  await until(async () => {
    await client.run("gc");
    return (await storedDigests(storage.root)).length === 0;
  }, "all is collected: nothing refers to any of it");
  await assertSound(client, storage.root);
});
