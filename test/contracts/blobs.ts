import assert from "node:assert/strict";
import { randomBytes, randomUUID } from "node:crypto";
import { test } from "node:test";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { BlobFault, type BlobReader, type BlobStore } from "../../src/store/blobs.ts";

/** A store under test, and the damage that can be done to it behind its back. */
export interface StoreUnderTest extends AsyncDisposable {
  store: BlobStore;
  /** Cuts a stored blob to so many bytes. */
  readonly cut: (digest: Digest, sizeBytes: number) => Promise<void>;
  /** The same content, opened anew, as after a restart. */
  readonly reopen: () => Promise<BlobStore>;
}

const KIB = 1024;

async function bytesOf(reader: BlobReader, pieceBytes = 10_000): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for (let position = 0; ;) {
    const piece = Buffer.alloc(pieceBytes);
    const bytes = await reader.read(piece, position);
    if (bytes === 0) break;
    pieces.push(piece.subarray(0, bytes));
    position += bytes;
  }
  reader.close();
  return Buffer.concat(pieces);
}

async function put(store: BlobStore, content: Buffer, algorithm: "sha256" | "sha512" = "sha256"): Promise<Digest> {
  const digest = digestOf(content, algorithm);
  const { staged } = await store.stage(digest);
  await staged.write([content], 0);
  await staged.commit();
  await staged.close();
  return digest;
}

const isFault = (fault: BlobFault["fault"]) => (error: unknown) => error instanceof BlobFault && error.fault === fault;

async function listed(store: BlobStore): Promise<Digest[]> {
  const digests: Digest[] = [];
  for await (const { digest } of store.list()) digests.push(digest);
  return digests.sort();
}

/** What every store of blobs promises. */
export function testBlobStore(name: string, start: () => Promise<StoreUnderTest>): void {
  const check = (what: string, work: (under: StoreUnderTest) => Promise<void>): void => {
    test(`${name}: ${what}`, async () => {
      await using under = await start();
      await work(under);
    });
  };

  check("what is committed is read back, by either algorithm, also when it is empty", async ({ store }) => {
    for (const algorithm of ["sha256", "sha512"] as const) {
      for (const content of [Buffer.alloc(0), randomBytes(1), randomBytes(300 * KIB)]) {
        const digest = await put(store, content, algorithm);
        const reader = await store.open(digest, content.length);
        assert.equal(reader.sizeBytes, content.length);
        assert.ok((await bytesOf(reader)).equals(content));
      }
    }
    assert.equal((await listed(store)).length, 6);
    assert.deepEqual(await store.leftovers(), []);
  });

  check("what is staged is no blob until it is committed", async ({ store, reopen }) => {
    const content = randomBytes(5 * KIB);
    const digest = digestOf(content);
    const { staged } = await store.stage(digest);
    await staged.write([content], 0);
    await assert.rejects(store.open(digest, content.length), isFault("missing"));
    assert.deepEqual(await listed(store), []);
    assert.deepEqual(await listed(await reopen()), []);
    await staged.discard();
    await staged.close();
    assert.deepEqual(await store.leftovers(), []);
  });

  check("buffers are written one after the other, at any offset, and read behind the writer", async ({ store }) => {
    const content = randomBytes(100 * KIB);
    const { staged } = await store.stage(digestOf(content));
    await staged.write([content.subarray(50 * KIB, 60 * KIB), Buffer.alloc(0), content.subarray(60 * KIB)], 50 * KIB);
    const pieces = Array.from({ length: 3000 }, (_, i) => content.subarray(i * 10, i * 10 + 10));
    await staged.write(pieces, 0);
    await staged.write([content.subarray(30_000, 50 * KIB)], 30_000);
    const target = Buffer.alloc(content.length);
    assert.equal(await staged.read(target, 0), content.length);
    assert.ok(target.equals(content));
    assert.equal(await staged.read(target, content.length), 0);
    await staged.discard();
    await staged.close();
  });

  check("reading goes on after commit and after discard", async ({ store }) => {
    for (const end of ["commit", "discard"] as const) {
      const content = randomBytes(20 * KIB);
      const { staged } = await store.stage(digestOf(content));
      await staged.write([content], 0);
      await staged[end]();
      const target = Buffer.alloc(content.length);
      assert.equal(await staged.read(target, 0), content.length);
      assert.ok(target.equals(content));
      await staged.close();
    }
  });

  check("what is kept is found at the next start, cut to what was kept", async ({ store, reopen }) => {
    const content = randomBytes(50 * KIB);
    const digest = digestOf(content);
    const first = await store.stage(digest);
    assert.equal(first.sizeBytes, 0);
    await first.staged.write([content], 0);
    await first.staged.keep(30 * KIB);
    await first.staged.close();
    const again = await reopen();
    const [leftover] = await again.leftovers();
    assert.deepEqual([leftover?.digest, leftover?.sizeBytes], [digest, 30 * KIB]);
    const { staged, sizeBytes } = await again.stage(digest);
    assert.equal(sizeBytes, 30 * KIB);
    await staged.write([content.subarray(30 * KIB)], 30 * KIB);
    await staged.commit();
    await staged.close();
    assert.ok((await bytesOf(await again.open(digest, content.length))).equals(content));
    assert.deepEqual(await again.leftovers(), []);
  });

  check(
    "what was written with holes and left by a crash counts only as far as it was said to be sound",
    async ({ store, reopen }) => {
      const digest = digestOf(randomBytes(1));
      const sound = 3 * KIB;
      const { staged } = await store.stage(digest);
      await staged.write([randomBytes(KIB)], 0);
      await staged.allowHoles(KIB);
      await staged.write([randomBytes(KIB)], 8 * KIB);
      await staged.write([randomBytes(2 * KIB)], KIB);
      await staged.allowHoles(sound);
      await staged.write([randomBytes(KIB)], 5 * KIB);
      await staged.close();
      const again = await reopen();
      assert.equal((await again.leftovers()).length, 1);
      const resumed = await again.stage(digest);
      assert.equal(resumed.sizeBytes, sound);
      await resumed.staged.close();
      // Cut once, it is sound: not once more at every start.
      const third = await again.stage(digest);
      assert.equal(third.sizeBytes, sound);
      await third.staged.close();
      await again.removeLeftover(digest);
      assert.deepEqual(await again.leftovers(), []);
    },
  );

  check("what was written with holes is kept up to where the writer says that it is sound", async ({ store }) => {
    const digest = digestOf(randomBytes(1));
    const { staged } = await store.stage(digest);
    await staged.allowHoles(0);
    await staged.write([randomBytes(10 * KIB)], 0);
    await staged.keep(7 * KIB);
    await staged.allowHoles(6 * KIB);
    await staged.keep(5 * KIB);
    await staged.close();
    const again = await store.stage(digest);
    assert.equal(again.sizeBytes, 5 * KIB);
    await again.staged.discard();
    await again.staged.close();
  });

  check("what was written with holes is committed like any other", async ({ store }) => {
    const content = randomBytes(30 * KIB);
    const digest = digestOf(content);
    const { staged } = await store.stage(digest);
    await staged.allowHoles(0);
    await staged.write([content.subarray(10 * KIB)], 10 * KIB);
    await staged.write([content.subarray(0, 10 * KIB)], 0);
    await staged.commit();
    await staged.close();
    assert.ok((await bytesOf(await store.open(digest, content.length))).equals(content));
    assert.deepEqual(await store.leftovers(), []);
  });

  check(
    "a blob of another size is corrupt, a missing one is missing, and nothing stays open",
    async ({ store, cut }) => {
      const content = randomBytes(10 * KIB);
      const digest = await put(store, content);
      await assert.rejects(store.open(digest, content.length + 1), isFault("corrupt"));
      await cut(digest, 100);
      await assert.rejects(store.open(digest, content.length), isFault("corrupt"));
      await store.remove(digest);
      await store.remove(digest);
      await assert.rejects(store.open(digest, content.length), isFault("missing"));
      assert.equal(store.isOpen(digest), false);
    },
  );

  check(
    "content that ends early is an error of the read, never an end; the next to open it is told",
    async ({ store, cut }) => {
      const content = randomBytes(10 * KIB);
      const digest = await put(store, content);
      const reader = await store.open(digest, content.length);
      await cut(digest, 4 * KIB);
      const target = Buffer.alloc(10 * KIB);
      assert.equal(await reader.read(target, 0), 4 * KIB);
      await assert.rejects(reader.read(target, 4 * KIB), isFault("corrupt"));
      reader.close();
      await assert.rejects(store.open(digest, content.length), (error) => error instanceof BlobFault);
      await put(store, content);
      assert.ok((await bytesOf(await store.open(digest, content.length))).equals(content));
    },
  );

  check("readers that have it open go on after remove and after it was replaced", async ({ store }) => {
    const content = randomBytes(50 * KIB);
    const digest = await put(store, content);
    const [first, second] = [await store.open(digest, content.length), await store.open(digest, content.length)];
    assert.equal(store.isOpen(digest), true);
    await store.remove(digest);
    assert.ok((await bytesOf(first)).equals(content));
    assert.equal(store.isOpen(digest), true);
    await put(store, content);
    assert.ok((await bytesOf(second)).equals(content));
    assert.equal(store.isOpen(digest), false);
    second.close();
    await assert.rejects(second.read(Buffer.alloc(1), 0), /after close/);
  });

  check("a quarantined blob is gone, and its place is free", async ({ store }) => {
    const content = randomBytes(KIB);
    const digest = await put(store, content);
    await store.quarantine(digest);
    await store.quarantine(digest);
    await assert.rejects(store.open(digest, content.length), isFault("missing"));
    await put(store, content);
    assert.ok((await bytesOf(await store.open(digest, content.length))).equals(content));
  });

  check("an upload grows piece by piece, also after a restart, and becomes the blob that it is", async (under) => {
    for (const algorithm of ["sha256", "sha512"] as const) {
      const content = randomBytes(50 * KIB);
      const digest = digestOf(content, algorithm);
      const id = randomUUID();
      assert.equal(await under.store.uploadSize(id), undefined);
      const first = await under.store.stageUpload(id);
      assert.equal(first.sizeBytes, 0);
      await first.staged.write([content.subarray(0, 10 * KIB), content.subarray(10 * KIB, 30 * KIB)], 0);
      await first.staged.flush();
      await first.staged.keep(20 * KIB);
      await first.staged.close();
      const again = await under.reopen();
      assert.equal(await again.uploadSize(id), 20 * KIB);
      const [file] = await again.uploads();
      assert.deepEqual([file?.id, file?.sizeBytes], [id, 20 * KIB]);
      assert.ok(Math.abs(Date.now() - (file?.modifiedAtMs ?? 0)) < 60_000);
      const { staged, sizeBytes } = await again.stageUpload(id);
      assert.equal(sizeBytes, 20 * KIB);
      await staged.write([content.subarray(20 * KIB)], 20 * KIB);
      const target = Buffer.alloc(content.length);
      assert.equal(await staged.read(target, 0), content.length);
      assert.ok(target.equals(content));
      assert.deepEqual(await listed(again), []);
      await staged.commit(digest);
      await staged.close();
      assert.ok((await bytesOf(await again.open(digest, content.length))).equals(content));
      assert.deepEqual(await again.uploads(), []);
      assert.equal(await again.uploadSize(id), undefined);
      await again.remove(digest);
    }
  });

  check("an upload is given up or removed, however often", async ({ store }) => {
    const [discarded, removed] = [randomUUID(), randomUUID()];
    for (const id of [discarded, removed]) {
      const { staged } = await store.stageUpload(id);
      await staged.write([randomBytes(KIB)], 0);
      if (id === discarded) await staged.discard();
      await staged.close();
    }
    assert.deepEqual(
      (await store.uploads()).map(({ id }) => id),
      [removed],
    );
    await store.removeUpload(removed);
    await store.removeUpload(removed);
    assert.deepEqual(await store.uploads(), []);
  });

  check("an upload of a damaged blob mends it; who reads the damaged one meets its fault alone", async (under) => {
    const { store } = under;
    const content = randomBytes(30 * KIB);
    const digest = await put(store, content);
    const [before, other] = [await store.open(digest, content.length), await store.open(digest, content.length)];
    await under.cut(digest, 10 * KIB);
    await assert.rejects(before.read(Buffer.alloc(KIB), 20 * KIB), isFault("corrupt"));
    const { staged } = await store.stageUpload(randomUUID());
    await staged.write([content], 0);
    await staged.commit(digest);
    await staged.close();
    const after = await store.open(digest, content.length);
    assert.notEqual(after.content, before.content);
    assert.ok((await bytesOf(after)).equals(content));
    await assert.rejects(other.read(Buffer.alloc(KIB), 20 * KIB), isFault("corrupt"));
    before.close();
    other.close();
    assert.ok((await bytesOf(await store.open(digest, content.length))).equals(content));
    assert.equal(store.isOpen(digest), false);
  });

  check(
    "one at a time is alone with a digest, in the order of asking; others are not in the way",
    async ({ store }) => {
      const [a, b, c] = [digestOf(Buffer.from("a")), digestOf(Buffer.from("b")), digestOf(Buffer.from("c"))];
      const steps: string[] = [];
      const gate = Promise.withResolvers<void>();
      const alone = (name: string, digests: Digest[], until?: Promise<void>): Promise<string> =>
        store.exclusive(digests, async () => {
          steps.push(`${name} begins`);
          await until;
          steps.push(`${name} ends`);
          return name;
        });
      assert.equal(store.settled(a), undefined);
      const runs = [
        alone("first", [a, a], gate.promise),
        alone("second", [b, a]),
        alone("third", [a, b]),
        alone("fourth", [a]),
      ];
      assert.equal(await alone("other", [c]), "other");
      assert.deepEqual(steps, ["first begins", "other begins", "other ends"]);
      let settled = false;
      const wait = store.settled(a)?.then(() => (settled = true));
      assert.equal(store.settled(c), undefined);
      await new Promise((resolve) => setImmediate(resolve));
      assert.equal(settled, false);
      gate.resolve();
      assert.deepEqual(await Promise.all(runs), ["first", "second", "third", "fourth"]);
      assert.deepEqual(
        steps.filter((step) => step.endsWith("begins")),
        ["first begins", "other begins", "second begins", "third begins", "fourth begins"],
      );
      // Whoever begins has waited for the end of the one before.
      steps.splice(1, 2);
      assert.ok(
        steps.every((step, index) => step.endsWith(index % 2 === 0 ? "begins" : "ends")),
        steps.join(),
      );
      await wait;
      assert.equal(settled, true);
      assert.equal(store.settled(a) ?? store.settled(b), undefined);
    },
  );

  check("whoever fails alone with a digest is told so, and the next one has it", async ({ store }) => {
    const digest = digestOf(Buffer.from("a"));
    const failed = store.exclusive([digest], () => Promise.reject(new Error("no luck")));
    const settled = store.settled(digest);
    const next = store.exclusive([digest], () => Promise.resolve("next"));
    await assert.rejects(failed, /no luck/);
    await settled;
    assert.equal(await next, "next");
    assert.equal(store.settled(digest), undefined);
  });

  check("it tells its free bytes", async ({ store }) => {
    assert.ok((await store.freeBytes()) > 0);
  });
}
