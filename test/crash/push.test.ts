import assert from "node:assert/strict";
import { readdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { makeImage, virtualBlob, type Content } from "../kit/images.ts";
import { until } from "../kit/registry.ts";
import type { PushClient, Session } from "./client.ts";
import {
  assertBlob,
  assertImage,
  assertSound,
  blobPath,
  makeStorage,
  MIB,
  run,
  sizeOf,
  storedDigests,
  uploadPath,
} from "./stage.ts";
import { inject, readTrace, record, type Call, type Injection } from "./strace.ts";

const REPOSITORY = "team/app";
const KILL = "signal=SIGKILL";

/** Sends the first bytes of a body, and never ends it. */
function sendAndHold(client: PushClient, session: Session, bytes: number): { leave(): void } {
  const { promise, reject } = Promise.withResolvers<void>();
  const body = async function* (): AsyncGenerator<Buffer> {
    yield* session.content.chunks(0, bytes);
    await promise;
  };
  promise.catch(() => undefined);
  client.send("PATCH", session.location, {}, body()).catch(() => undefined);
  return { leave: () => reject(new Error("gone")) };
}

for (const algorithm of ["sha256", "sha512"] as const) {
  test(`killed while bytes arrive (${algorithm}): the next daemon tells the offset that is on the disk, and the push goes on from there`, async () => {
    await using storage = await makeStorage();
    const { root } = storage;
    const content = virtualBlob(9 * MIB + 17, "resumed", algorithm);
    let session: Session;
    let offset: number;
    {
      await using running = await run(root);
      session = await running.client.open(REPOSITORY, content);
      const sending = sendAndHold(running.client, session, 5 * MIB);
      const file = uploadPath(root, session);
      await until(async () => (await sizeOf(file)) >= 4 * MIB, "most of it is on the disk");
      await running.daemon.kill();
      sending.leave();
      offset = await sizeOf(file);
    }
    await using running = await run(root);
    const { client } = running;
    assert.equal(await client.offsetOf(session), offset);
    session.acknowledgedBytes = offset;
    await client.append(session, offset + MIB);
    assert.equal((await client.finish(session)).status, 201);
    await assertBlob(client, REPOSITORY, content);
    assert.deepEqual(await readdir(join(root, "uploads")), []);
    await assertSound(client, root);
  });
}

const logOf = (root: string): string => join(root, "entrepot.db-wal");

/** Where in a commit the daemon is killed. */
interface Point {
  readonly when: string;
  readonly at: (root: string, blob: Content) => Omit<Injection, "effect">;
  /** Whether the file is in its place then. */
  readonly inPlace: boolean;
  /** Whether the next daemon has the blob already. */
  readonly kept: boolean;
}

const BEFORE_ROW: Point = {
  when: "after the file, before its row",
  at: (root) => ({ calls: "pwrite64", path: logOf(root) }),
  inPlace: true,
  kept: false,
};

const POINTS: readonly Point[] = [
  { when: "before the rename", at: () => ({ calls: "rename" }), inPlace: false, kept: false },
  {
    when: "after the rename, before the sync of the folder",
    at: (root, { digest }) => ({ calls: "fsync", path: dirname(blobPath(root, digest)) }),
    inPlace: true,
    kept: false,
  },
  BEFORE_ROW,
  {
    when: "after the row, before the sync of the log",
    at: (root) => ({ calls: "fdatasync", path: logOf(root) }),
    inPlace: true,
    kept: true,
  },
];

for (const { when, at, inPlace, kept } of POINTS) {
  test(`killed in a commit, ${when}: the same push succeeds with the next daemon, and nothing is left over`, async () => {
    await using storage = await makeStorage();
    const { root } = storage;
    const content = virtualBlob(MIB, "killed");
    let session: Session;
    {
      await using running = await run(root);
      const { client, daemon } = running;
      // Another blob first: its folder, the log and the namespace are there.
      await client.pushBlob(REPOSITORY, virtualBlob(1000, "before"), "monolithic");
      session = await client.open(REPOSITORY, content);
      await client.append(session, content.sizeBytes);
      await using _strace = await inject(daemon.pid, { ...at(root, content), effect: KILL });
      await assert.rejects(client.finish(session));
      await daemon.ended;
    }
    assert.equal((await storedDigests(root)).includes(content.digest), inPlace);
    await using running = await run(root);
    const { client } = running;
    const { status } = await client.get(`/v2/${REPOSITORY}/blobs/${content.digest}`);
    assert.equal(status, kept ? 200 : 404);
    if (inPlace) await client.pushBlob(REPOSITORY, content, "chunked");
    else {
      assert.equal(await client.offsetOf(session), content.sizeBytes);
      session.acknowledgedBytes = content.sizeBytes;
      assert.equal((await client.finish(session)).status, 201);
    }
    await assertBlob(client, REPOSITORY, content);
    await until(async () => (await storedDigests(root)).length === 2, "both blobs are there, and nothing else");
    await assertBlob(client, REPOSITORY, content);
    assert.deepEqual(await readdir(join(root, "uploads")), []);
    await assertSound(client, root);
  });
}

test("killed after the rename: a blob that nobody pushes again is collected", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  const content = virtualBlob(MIB, "orphan");
  {
    await using running = await run(root);
    const session = await running.client.open(REPOSITORY, content);
    await using _strace = await inject(running.daemon.pid, { ...BEFORE_ROW.at(root, content), effect: KILL });
    await assert.rejects(running.client.finish(session));
    await running.daemon.ended;
  }
  assert.deepEqual(await storedDigests(root), [content.digest]);
  await using _running = await run(root);
  await until(async () => (await storedDigests(root)).length === 0, "the orphan is collected");
});

test("killed right after a manifest was acknowledged: it is pulled by tag and by digest, with all its blobs", async () => {
  await using storage = await makeStorage();
  const image = makeImage({ layers: [MIB, 2000], seed: "acknowledged" });
  {
    await using running = await run(storage.root);
    await running.client.pushImage(REPOSITORY, "1", image);
    await running.daemon.kill();
  }
  await using running = await run(storage.root);
  for (const reference of ["1", image.digest]) await assertImage(running.client, REPOSITORY, reference, image);
  await assertSound(running.client, storage.root);
});

test("a push is on the disk before it is acknowledged: the file, its name, the folder, the log; for a manifest the log", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  const trace = `${root}.trace`;
  const image = makeImage({ layers: [50_000], seed: "order" });
  const [layer] = image.layers;
  assert.ok(layer);
  await using running = await run(root);
  const { client, daemon } = running;
  await client.pushBlob(REPOSITORY, image.config, "monolithic");
  const traced = async (push: () => Promise<unknown>): Promise<Call[]> => {
    await using strace = await record(
      daemon.pid,
      "fsync,fdatasync,rename,renameat,renameat2,write,writev,pwrite64",
      trace,
    );
    await push();
    await strace.detach();
    return readTrace(trace);
  };
  const assertOrder = (calls: readonly Call[], patterns: readonly RegExp[]): void => {
    const steps = patterns.map((pattern) => calls.find(({ text }) => pattern.test(text)));
    for (const [index, step] of steps.entries()) {
      const earlier = steps[index - 1];
      assert.ok(
        step && (!earlier || earlier.to < step.from),
        `${String(patterns[index])} is not after ${String(patterns[index - 1])}:\n${calls.map(({ text }) => text).join("\n")}`,
      );
    }
  };
  const place = blobPath(root, layer.digest);
  const log = [/^pwrite64\(\d+<.*entrepot\.db-wal>/, /^fdatasync\(\d+<.*entrepot\.db-wal>.*= 0$/];
  const told = /^writev?\(\d+<(?:TCP|socket).*"HTTP\/1\.1 201/;
  const blobCalls = await traced(() => client.pushBlob(REPOSITORY, layer, "monolithic"));
  assertOrder(
    // A session's row is written to the log, too, and not synced.
    blobCalls.slice(blobCalls.findIndex(({ name }) => name === "fsync")),
    [
      new RegExp(`^fsync\\(\\d+<${root}/uploads/[-0-9a-f]+>.*= 0$`),
      new RegExp(`^rename.*"${root}/uploads/.*"${place}".*= 0$`),
      new RegExp(`^fsync\\(\\d+<${dirname(place)}>.*= 0$`),
      ...log,
      told,
    ],
  );
  const manifestCalls = await traced(() => client.putManifest(REPOSITORY, image, "1"));
  assertOrder(manifestCalls, [...log, told]);
  await rm(trace);
});

test("the disk fails to keep an upload: the push is refused, nothing is published, and the same session never succeeds", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  await using running = await run(root);
  const { client, daemon } = running;
  const content = virtualBlob(2 * MIB, "EIO");
  const session = await client.open(REPOSITORY, content);
  await client.append(session, MIB);
  {
    await using _strace = await inject(daemon.pid, {
      calls: "fsync,fdatasync",
      effect: "error=EIO",
      path: uploadPath(root, session),
    });
    const refused = await client.finish(session);
    assert.equal(refused.status, 503);
    assert.match(refused.bytes.toString(), /disk failed \(EIO\)/);
  }
  assert.deepEqual(await storedDigests(root), []);
  assert.equal((await client.get(`/v2/${REPOSITORY}/blobs/${content.digest}`)).status, 404);
  assert.deepEqual(await readdir(join(root, "uploads")), []);
  // What the first sync lost, a second one would not miss.
  assert.equal((await client.finish(session)).status, 404);
  await client.pushBlob(REPOSITORY, content, "monolithic");
  await assertBlob(client, REPOSITORY, content);
});

test("the disk fails to keep the folder's new entry: the push is refused, and a new one succeeds", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  await using running = await run(root);
  const { client, daemon } = running;
  const content = virtualBlob(MIB, "EIO in the folder");
  const session = await client.open(REPOSITORY, content);
  await client.append(session, MIB);
  {
    await using _strace = await inject(daemon.pid, {
      calls: "fsync",
      effect: "error=EIO",
      path: dirname(blobPath(root, content.digest)),
    });
    assert.equal((await client.finish(session)).status, 503);
  }
  assert.equal((await client.get(`/v2/${REPOSITORY}/blobs/${content.digest}`)).status, 404);
  assert.equal((await client.finish(session)).status, 404);
  await client.pushBlob(REPOSITORY, content, "single");
  await assertBlob(client, REPOSITORY, content);
  await assertSound(client, root);
});

test("the disk fails to keep the log: pushes are refused until a restart, pulls go on, and nothing acknowledged is lost", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  const sound = makeImage({ layers: [MIB], seed: "sound" });
  const lost = makeImage({ layers: [2 * MIB], seed: "lost" });
  {
    await using running = await run(root);
    const { client, daemon } = running;
    await client.pushImage(REPOSITORY, "1", sound);
    {
      await using _strace = await inject(daemon.pid, {
        calls: "fdatasync,fsync",
        effect: "error=EIO",
        path: logOf(root),
      });
      await assert.rejects(client.pushImage(REPOSITORY, "2", lost), { name: "WrongAnswer", message: /: 50[03] / });
    }
    // The system calls pages clean that it never wrote: a sync that succeeds now proves nothing.
    await assert.rejects(client.pushImage(REPOSITORY, "2", lost), { name: "WrongAnswer", message: /: 50[03] / });
    await assertImage(client, REPOSITORY, "1", sound);
    await daemon.kill();
  }
  await using running = await run(root);
  const { client } = running;
  await assertImage(client, REPOSITORY, "1", sound);
  await assertSound(client, root);
  await client.pushImage(REPOSITORY, "2", lost);
  await assertImage(client, REPOSITORY, "2", lost);
});
