import assert from "node:assert/strict";
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, readlink, rm, stat, truncate, utimes, writeFile } from "node:fs/promises";
import { createServer, request, type ClientRequest, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import { pino } from "pino";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { RegistryError, type ErrorCode } from "../../src/oci/errors.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import { FileBlobStore } from "../../src/store/blobs-fs.ts";
import type { BlobStore, StagedUpload } from "../../src/store/blobs.ts";
import type { Room } from "../../src/store/incoming.ts";
import { Uploads } from "../../src/store/uploads.ts";

const MIB = 1024 * 1024;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const LIFE_MS = 7 * DAY_MS;
const REPOSITORY = "team/app" as RepositoryName;
const OTHER = "team/other" as RepositoryName;

const UNLIMITED: Room = { reserve: () => Promise.resolve({ release: () => undefined }) };

interface Setup {
  room?: Room;
  clock?: Clock;
  /** Stands between the store and what uses its staged uploads: a disk that fails or is slow. */
  disk?: (staged: StagedUpload) => Partial<StagedUpload>;
}

interface Bench extends AsyncDisposable {
  readonly uploads: Uploads;
  readonly blobs: BlobStore;
  readonly db: Database;
  /** Size by digest, as they were recorded. */
  readonly recorded: Map<Digest, number>;
  readonly record: (digest: Digest) => (sizeBytes: number) => Promise<void>;
  /** The same storage in the hands of another process: nothing but the files and the database is carried over. */
  readonly restart: () => Promise<Uploads>;
  /** Names of the files under uploads/. */
  readonly files: () => Promise<string[]>;
  readonly pathOf: (id: string) => string;
  readonly assertStored: (content: Buffer, digest: Digest) => Promise<void>;
  readonly assertNothing: () => Promise<void>;
}

async function startUploads({ room = UNLIMITED, clock = systemClock, disk }: Setup = {}): Promise<Bench> {
  const root = await mkdtemp(join(tmpdir(), "entrepot-uploads-"));
  const blobs = withDisk(await FileBlobStore.open(root), disk);
  const db = await openSqlite(join(root, "entrepot.db"));
  const recorded = new Map<Digest, number>();
  const log = pino({ level: "silent" });
  const open = (): Uploads => new Uploads({ db, blobs, clock, room, lifeMs: () => LIFE_MS, log });
  const started = [open()];
  const files = (): Promise<string[]> => readdir(join(root, "uploads"));
  const listBlobs = async (): Promise<Digest[]> => {
    const digests: Digest[] = [];
    for await (const { digest } of blobs.list()) digests.push(digest);
    return digests;
  };
  return {
    uploads: started[0] as Uploads,
    blobs,
    db,
    recorded,
    record: (digest) => async (sizeBytes) => {
      assert.ok(blobs.settled(digest), "it is recorded alone with its digest");
      assert.ok((await listBlobs()).includes(digest), "its file is in place before its row");
      recorded.set(digest, sizeBytes);
    },
    restart: async () => {
      await started.at(-1)?.[Symbol.asyncDispose]();
      const uploads = open();
      started.push(uploads);
      await uploads.expire();
      return uploads;
    },
    files,
    pathOf: (id) => join(root, "uploads", id),
    assertStored: async (content, digest) => {
      assert.equal(recorded.get(digest), content.length);
      const algorithm = digest.slice(0, 6);
      const file = await readFile(join(root, "blobs", algorithm, hexOf(digest).slice(0, 2), hexOf(digest)));
      assert.ok(file.equals(content));
      assert.equal(blobs.settled(digest), undefined);
    },
    assertNothing: async () => {
      assert.deepEqual(await files(), []);
      assert.deepEqual(await listBlobs(), []);
      assert.equal(recorded.size, 0);
      assert.deepEqual(await db.all("SELECT * FROM uploads"), []);
    },
    [Symbol.asyncDispose]: async () => {
      await started.at(-1)?.[Symbol.asyncDispose]();
      await db[Symbol.asyncDispose]();
      const open = await Promise.all(
        (await readdir("/proc/self/fd").catch(() => [])).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "")),
      );
      assert.deepEqual(
        open.filter((path) => path.startsWith(root)),
        [],
      );
      await rm(root, { recursive: true });
    },
  };
}

function withDisk(blobs: BlobStore, disk: Setup["disk"]): BlobStore {
  if (!disk) return blobs;
  const stageUpload: BlobStore["stageUpload"] = async (id) => {
    const { staged, sizeBytes } = await blobs.stageUpload(id);
    const changed = disk(staged);
    const get = (_: StagedUpload, key: keyof StagedUpload): unknown => changed[key] ?? staged[key].bind(staged);
    return { staged: new Proxy(staged, { get: (target, key) => get(target, key as keyof StagedUpload) }), sizeBytes };
  };
  const get = (target: BlobStore, key: string | symbol): unknown => {
    if (key === "stageUpload") return stageUpload;
    const member = Reflect.get(target, key) as unknown;
    return typeof member === "function" ? member.bind(target) : member;
  };
  return new Proxy(blobs, { get });
}

/** The bytes in pieces as a socket yields them. */
async function* inPieces(content: Buffer, pieceBytes = 65_536): AsyncGenerator<Buffer> {
  for (let at = 0; at < content.length; at += pieceBytes) yield content.subarray(at, at + pieceBytes);
}

async function* breaking(content: Buffer): AsyncGenerator<Buffer> {
  yield* inPieces(content);
  throw new Error("the line broke");
}

/** A body that sends what it has and then keeps quiet, as a client behind a dead line does. */
class Hanging implements AsyncIterable<Buffer> {
  readonly #content: Iterator<Buffer>;
  readonly #starved = Promise.withResolvers<void>();
  letGo = false;

  constructor(...content: Buffer[]) {
    this.#content = content.values();
  }

  /** Resolves when all that it has was taken. */
  get starved(): Promise<void> {
    return this.#starved.promise;
  }

  [Symbol.asyncIterator](): AsyncIterator<Buffer> {
    return {
      next: () => {
        const next = this.#content.next();
        if (next.done !== true) return Promise.resolve(next);
        this.#starved.resolve();
        return new Promise(() => undefined);
      },
      return: () => {
        this.letGo = true;
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }
}

const failsWith =
  (code: ErrorCode, message: RegExp, status?: number) =>
  (error: unknown): boolean => {
    assert.ok(error instanceof RegistryError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    if (status !== undefined) assert.equal(error.status, status);
    return true;
  };
const isUnknown = failsWith("BLOB_UPLOAD_UNKNOWN", /begin a new one/, 404);
const isTakenOver = failsWith("BLOB_UPLOAD_INVALID", /another request took over this upload/);

test("a blob comes in pieces, is proven, published and recorded; then its session is unknown", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(5 * MIB + 7);
  const digest = digestOf(content);
  const { id, ...begun } = await uploads.start(REPOSITORY, "sha256");
  assert.match(id, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  assert.deepEqual([begun.repository, begun.algorithm, begun.sizeBytes], [REPOSITORY, "sha256", 0]);
  assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, 0);
  const cuts = [0, 1000, 3 * MIB, 3 * MIB, content.length];
  for (const [index, end] of cuts.entries()) {
    const part = content.subarray(cuts[index - 1] ?? 0, end);
    assert.equal((await uploads.append(REPOSITORY, id, inPieces(part))).sizeBytes, end);
    assert.deepEqual(await uploads.find(REPOSITORY, id), { id, ...begun, sizeBytes: end });
    assert.equal((await stat(bench.pathOf(id))).size, end);
  }
  assert.equal(uploads.inProgress, 1);
  await uploads.finish(REPOSITORY, id, digest, undefined, undefined, record(digest));
  await bench.assertStored(content, digest);
  assert.equal(uploads.inProgress, 0);
  assert.deepEqual(await bench.files(), []);
  assert.deepEqual(await bench.db.all("SELECT * FROM uploads"), []);
  await assert.rejects(uploads.find(REPOSITORY, id), isUnknown);
  await assert.rejects(uploads.append(REPOSITORY, id, inPieces(content)), isUnknown);
  await assert.rejects(uploads.finish(REPOSITORY, id, digest, undefined, undefined, record(digest)), isUnknown);
  await assert.rejects(uploads.cancel(REPOSITORY, id), isUnknown);
});

test("the closing request may bring the last bytes, or all of them, or none to an empty blob", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(2 * MIB);
  for (const [whole, first] of [
    [content, MIB],
    [content.subarray(1), 0],
    [Buffer.alloc(0), 0],
  ] as const) {
    const digest = digestOf(whole);
    const { id } = await uploads.start(REPOSITORY, "sha256");
    if (first > 0) await uploads.append(REPOSITORY, id, inPieces(whole.subarray(0, first)), { firstByte: 0 });
    const placement = { firstByte: first, lengthBytes: whole.length - first };
    const body = whole.length > 0 ? inPieces(whole.subarray(first)) : undefined;
    await uploads.finish(REPOSITORY, id, digest, body, placement, record(digest));
    await bench.assertStored(whole, digest);
  }
});

test("one request brings a whole blob: no session, and nothing is left where it fails", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(3 * MIB);
  const digest = digestOf(content);
  const rejected = async (body: AsyncIterable<Buffer>, length: number | undefined, error: RegExp): Promise<void> => {
    await assert.rejects(uploads.receive(digest, body, length, record(digest)), error);
    await bench.assertNothing();
  };
  await rejected(inPieces(content.subarray(1)), undefined, /what was sent is sha256:[0-9a-f]{64}, not sha256/);
  await rejected(inPieces(content.subarray(1)), content.length, /sent only 3145727/);
  await rejected(inPieces(content), content.length - 1, /sent more/);
  await rejected(breaking(content.subarray(0, 2 * MIB)), content.length, /the line broke/);
  for (const algorithm of ["sha256", "sha512"] as const) {
    const digest = digestOf(content, algorithm);
    await uploads.receive(digest, inPieces(content), content.length, record(digest));
    await bench.assertStored(content, digest);
  }
  assert.deepEqual(await bench.files(), []);
  assert.equal(uploads.inProgress, 0);
});

test("the digest may be of another algorithm than the session was begun with", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(2 * MIB + 1);
  for (const [begun, ended] of [
    ["sha256", "sha512"],
    ["sha512", "sha256"],
    ["sha512", "sha512"],
  ] as const) {
    const digest = digestOf(content, ended);
    const { id } = await uploads.start(REPOSITORY, begun);
    await uploads.append(REPOSITORY, id, inPieces(content.subarray(0, 1_000_000)));
    const rest = inPieces(content.subarray(1_000_000));
    await uploads.finish(REPOSITORY, id, digest, rest, undefined, record(digest));
    await bench.assertStored(content, digest);
  }
});

test("after a restart the push goes on from what is on the disk", async () => {
  await using bench = await startUploads();
  const content = randomBytes(4 * MIB);
  const digest = digestOf(content);
  const { id } = await bench.uploads.start(REPOSITORY, "sha256");
  await bench.uploads.append(REPOSITORY, id, inPieces(content.subarray(0, 2 * MIB)));
  let uploads = await bench.restart();
  assert.equal(uploads.inProgress, 1);
  assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, 2 * MIB);
  await uploads.append(REPOSITORY, id, inPieces(content.subarray(2 * MIB, 3 * MIB)), { firstByte: 2 * MIB });
  uploads = await bench.restart();
  await uploads.finish(REPOSITORY, id, digest, inPieces(content.subarray(3 * MIB)), undefined, bench.record(digest));
  await bench.assertStored(content, digest);
});

test("what a killed process left of a session, its row or its file alone, is harmless", async () => {
  await using bench = await startUploads();
  const content = randomBytes(MIB);
  const digest = digestOf(content);
  const { id } = await bench.uploads.start(REPOSITORY, "sha256");
  await bench.uploads.append(REPOSITORY, id, inPieces(content));
  await rm(bench.pathOf(id));
  const uploads = await bench.restart();
  assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, 0);
  await uploads.finish(REPOSITORY, id, digest, inPieces(content), { firstByte: 0 }, bench.record(digest));
  await bench.assertStored(content, digest);
  const stray = randomUUID();
  await writeFile(bench.pathOf(stray), "x");
  await assert.rejects(uploads.find(REPOSITORY, stray), isUnknown);
});

test("another repository's client neither sees nor disturbs an upload", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(100);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const body = new Hanging(content);
  const appending = uploads.append(REPOSITORY, id, body);
  await body.starved;
  await assert.rejects(uploads.find(OTHER, id), isUnknown);
  await assert.rejects(uploads.append(OTHER, id, inPieces(content)), isUnknown);
  await assert.rejects(uploads.finish(OTHER, id, digest, undefined, undefined, record(digest)), isUnknown);
  await assert.rejects(uploads.cancel(OTHER, id), isUnknown);
  assert.equal(body.letGo, false);
  const finished = uploads.finish(REPOSITORY, id, digest, undefined, undefined, record(digest));
  await assert.rejects(appending, isTakenOver);
  await finished;
  await bench.assertStored(content, digest);
});

test("bytes that belong elsewhere are refused with the offset; nothing is written, and the session goes on", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(1000);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await uploads.append(REPOSITORY, id, inPieces(content.subarray(0, 600)), { firstByte: 0, lengthBytes: 600 });
  const isElsewhere = (error: unknown): boolean => {
    assert.ok(error instanceof RegistryError);
    assert.deepEqual([error.code, error.status, error.detail], ["BLOB_UPLOAD_INVALID", 416, { offset: 600 }]);
    return true;
  };
  for (const firstByte of [0, 599, 601]) {
    const placement = { firstByte, lengthBytes: 400 };
    const body = content.subarray(600);
    await assert.rejects(uploads.append(REPOSITORY, id, inPieces(body), placement), isElsewhere);
    await assert.rejects(
      uploads.finish(REPOSITORY, id, digest, inPieces(body), placement, record(digest)),
      isElsewhere,
    );
    assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, 600);
  }
  const rest = inPieces(content.subarray(600));
  await uploads.finish(REPOSITORY, id, digest, rest, { firstByte: 600, lengthBytes: 400 }, record(digest));
  await bench.assertStored(content, digest);
});

test("a body that ends with more or fewer bytes than it says is taken back, the bytes before it are not", async () => {
  // The running hash goes back too: the file need not be read.
  await using bench = await startUploads({ disk: () => ({ read: () => Promise.reject(new Error("read")) }) });
  const { uploads, record } = bench;
  const content = randomBytes(6 * MIB);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await uploads.append(REPOSITORY, id, inPieces(content.subarray(0, MIB)));
  const isWrong = failsWith("SIZE_INVALID", /the request announced \d+ bytes and sent/, 400);
  for (const [sent, lengthBytes] of [
    [4 * MIB, 4 * MIB + 1],
    [4 * MIB, 3 * MIB - 1],
    [0, 1],
    [1, 0],
  ] as const) {
    const wrong = randomBytes(sent);
    await assert.rejects(uploads.append(REPOSITORY, id, inPieces(wrong), { lengthBytes }), isWrong);
    await assert.rejects(
      uploads.finish(REPOSITORY, id, digest, inPieces(wrong), { lengthBytes }, record(digest)),
      isWrong,
    );
    assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, MIB);
  }
  const placement = { firstByte: MIB, lengthBytes: 5 * MIB };
  await uploads.finish(REPOSITORY, id, digest, inPieces(content.subarray(MIB)), placement, record(digest));
  await bench.assertStored(content, digest);
});

test("a body that breaks off leaves what came of it, to the last byte, and the push goes on from there", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(5 * MIB);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const parts = [1_500_001, 3_000_000].map((end, index, ends) => ({ from: ends[index - 1] ?? 0, end }));
  for (const { from, end } of parts) {
    const placement = { firstByte: from, lengthBytes: content.length };
    await assert.rejects(
      uploads.append(REPOSITORY, id, breaking(content.subarray(from, end)), placement),
      /the line broke/,
    );
    assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, end);
  }
  const closing = breaking(content.subarray(3_000_000, 4_000_000));
  await assert.rejects(uploads.finish(REPOSITORY, id, digest, closing, undefined, record(digest)), /the line broke/);
  assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, 4_000_000);
  const rest = inPieces(content.subarray(4_000_000));
  await uploads.finish(REPOSITORY, id, digest, rest, { firstByte: 4_000_000 }, record(digest));
  await bench.assertStored(content, digest);
});

test("a wrong digest is told with both, and ends the session", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(1000);
  const digest = digestOf(randomBytes(1000));
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await uploads.append(REPOSITORY, id, inPieces(content));
  await assert.rejects(uploads.finish(REPOSITORY, id, digest, undefined, undefined, record(digest)), (error) => {
    assert.ok(error instanceof RegistryError);
    assert.equal(error.code, "DIGEST_INVALID");
    assert.ok(error.message.includes(digest) && error.message.includes(digestOf(content)));
    return true;
  });
  await bench.assertNothing();
  assert.equal(uploads.inProgress, 0);
});

test("a newer request takes over: the older is let go, and its bytes count", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(4 * MIB);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const older = new Hanging(content.subarray(0, 2 * MIB), content.subarray(2 * MIB, 2 * MIB + 5));
  const appending = uploads.append(REPOSITORY, id, older);
  await older.starved;
  const middle = new Hanging(content.subarray(2 * MIB + 5, 3 * MIB));
  const [first, second] = [
    assert.rejects(appending, isTakenOver),
    assert.rejects(uploads.append(REPOSITORY, id, middle, { firstByte: 2 * MIB + 5 }), isTakenOver),
  ];
  await middle.starved;
  await first;
  assert.equal(older.letGo, true);
  const placement = { firstByte: 3 * MIB, lengthBytes: MIB };
  await uploads.finish(REPOSITORY, id, digest, inPieces(content.subarray(3 * MIB)), placement, record(digest));
  await second;
  assert.equal(middle.letGo, true);
  await bench.assertStored(content, digest);
});

test("of many requests at once the newest goes on, the others write nothing after it", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(3000);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const older = Array.from({ length: 5 }, () => new Hanging(randomBytes(10)));
  const rejected = older.map((body) => assert.rejects(uploads.append(REPOSITORY, id, body), isTakenOver));
  await uploads.cancel(REPOSITORY, id);
  await Promise.all(rejected);
  await bench.assertNothing();
  const fresh = await uploads.start(REPOSITORY, "sha256");
  await uploads.finish(REPOSITORY, fresh.id, digest, inPieces(content), undefined, record(digest));
  await bench.assertStored(content, digest);
});

test("a cancel that waits gives way to a newer request as any other does", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(3000);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const older = new Hanging(content.subarray(0, 1000));
  const appending = assert.rejects(uploads.append(REPOSITORY, id, older), isTakenOver);
  await older.starved;
  const cancelling = assert.rejects(uploads.cancel(REPOSITORY, id), isTakenOver);
  const rest = inPieces(content.subarray(1000));
  await uploads.finish(REPOSITORY, id, digest, rest, { firstByte: 1000 }, record(digest));
  await Promise.all([appending, cancelling]);
  await bench.assertStored(content, digest);
});

test("a file that has lost bytes behind our back is proven as it is", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(2 * MIB);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await uploads.append(REPOSITORY, id, inPieces(content.subarray(0, MIB)));
  await truncate(bench.pathOf(id), 1000);
  assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, 1000);
  const rest = inPieces(content.subarray(1000));
  await uploads.finish(REPOSITORY, id, digest, rest, { firstByte: 1000 }, record(digest));
  await bench.assertStored(content, digest);
});

test("a push that is being published is not interrupted: whoever comes then finds the session gone", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(1000);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const [recording, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const finishing = uploads.finish(REPOSITORY, id, digest, inPieces(content), undefined, async (sizeBytes) => {
    recording.resolve();
    await gate.promise;
    await record(digest)(sizeBytes);
  });
  await recording.promise;
  const later = [
    uploads.find(REPOSITORY, id),
    uploads.append(REPOSITORY, id, inPieces(content)),
    uploads.cancel(REPOSITORY, id),
  ].map((work) => assert.rejects(work, isUnknown));
  gate.resolve();
  await finishing;
  await Promise.all(later);
  await bench.assertStored(content, digest);
  assert.deepEqual(await bench.files(), []);
});

test("where the row can't be made its error goes on, the file stays for recovery, and the session is gone", async () => {
  await using bench = await startUploads();
  const { uploads } = bench;
  const content = randomBytes(1000);
  const digest = digestOf(content);
  const refuse = (): Promise<void> => Promise.reject(new Error("the database is locked"));
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const finishing = uploads.finish(REPOSITORY, id, digest, inPieces(content), undefined, refuse);
  await assert.rejects(finishing, /the database is locked/);
  await assert.rejects(uploads.receive(digest, inPieces(content), undefined, refuse), /the database is locked/);
  await assert.rejects(uploads.find(REPOSITORY, id), isUnknown);
  assert.deepEqual(await bench.files(), []);
  const reader = await bench.blobs.open(digest, content.length);
  reader.close();
  assert.equal(bench.blobs.settled(digest), undefined);
});

test("two pushes of one blob are published one after the other", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(1000);
  const digest = digestOf(content);
  let [inside, most] = [0, 0];
  await Promise.all(
    Array.from({ length: 4 }, () =>
      uploads.receive(digest, inPieces(content), undefined, async (sizeBytes) => {
        most = Math.max(most, ++inside);
        await record(digest)(sizeBytes);
        inside--;
      }),
    ),
  );
  assert.equal(most, 1);
  await bench.assertStored(content, digest);
});

test("an upload that is cancelled is gone", async () => {
  await using bench = await startUploads();
  const { uploads } = bench;
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await uploads.append(REPOSITORY, id, inPieces(randomBytes(1000)));
  await uploads.cancel(REPOSITORY, id);
  await bench.assertNothing();
  await assert.rejects(uploads.cancel(REPOSITORY, id), isUnknown);
  assert.equal(uploads.inProgress, 0);
});

test("room is asked for before bytes are written, step by step, and given back", async () => {
  let held = 0;
  const asked: number[] = [];
  const room: Room = {
    reserve: async (bytes) => {
      asked.push(bytes);
      held += bytes;
      return { release: () => void (held -= bytes) };
    },
  };
  let heldMost = 0;
  await using bench = await startUploads({
    room,
    disk: (staged) => ({
      write: async (buffers, position) => {
        heldMost = Math.max(heldMost, held);
        assert.ok(held > 0, "written into room that is held");
        await staged.write(buffers, position);
      },
    }),
  });
  const { uploads, record } = bench;
  const content = randomBytes(70 * MIB);
  const digest = digestOf(content);
  await uploads.receive(digest, inPieces(content, 1_000_000), content.length, record(digest));
  await bench.assertStored(content, digest);
  assert.equal(held, 0);
  // The second step is the rest, no more.
  assert.equal(asked.length, 2);
  assert.equal(asked[0], 64 * MIB);
  assert.ok((asked[1] ?? 0) >= 6 * MIB && (asked[1] ?? 0) < 8 * MIB, asked.join());
  assert.equal(heldMost, 64 * MIB);
  asked.length = 0;
  const small = content.subarray(0, 1000);
  await uploads.receive(digestOf(small), inPieces(small), small.length, record(digestOf(small)));
  assert.deepEqual(asked, [1000]);
  asked.length = 0;
  // Nobody knows how long it is: it claims no more than what it has shown.
  await uploads.receive(digestOf(small), inPieces(small), undefined, record(digestOf(small)));
  assert.deepEqual(asked, [1000]);
  asked.length = 0;
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await assert.rejects(uploads.append(REPOSITORY, id, breaking(small)), /the line broke/);
  await assert.rejects(uploads.append(REPOSITORY, id, inPieces(small), { lengthBytes: 7 }), /sent more/);
  assert.equal(held, 0);
});

test("without room an upload ends with the remedy; not a byte is written beyond, and nothing is left", async () => {
  let left = 64 * MIB;
  const room: Room = {
    reserve: (bytes) => Promise.resolve((left -= bytes) >= 0 ? { release: () => undefined } : undefined),
  };
  let written = 0;
  await using bench = await startUploads({
    room,
    disk: (staged) => ({
      write: async (buffers, position) => {
        await staged.write(buffers, position);
        written = position + buffers.reduce((sum, { length }) => sum + length, 0);
      },
    }),
  });
  const { uploads, record } = bench;
  const piece = randomBytes(MIB);
  const body = new Hanging(...Array.from({ length: 80 }, () => piece));
  const isFull = failsWith("UNAVAILABLE", /disk is full.*free space under storage\.root/, 507);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await assert.rejects(uploads.append(REPOSITORY, id, body), isFull);
  assert.ok(written > 60 * MIB && written <= 64 * MIB, String(written));
  assert.equal(body.letGo, true);
  await assert.rejects(uploads.find(REPOSITORY, id), isUnknown);
  const digest = digestOf(piece);
  await assert.rejects(uploads.receive(digest, inPieces(piece), undefined, record(digest)), isFull);
  await bench.assertNothing();
});

test("a disk that fails a write, a flush, a cut, a read or the commit ends the upload: never a success after it", async () => {
  const fail = (code: string): (() => Promise<never>) => {
    return () => Promise.reject(Object.assign(new Error(`${code}: injected`), { code }));
  };
  let broken: Partial<StagedUpload> = {};
  await using bench = await startUploads({ disk: () => broken });
  const { uploads, record } = bench;
  const content = randomBytes(40 * MIB);
  const digest = digestOf(content);
  const isBroken = failsWith("UNAVAILABLE", /disk failed \(EIO\).*check the disk under storage\.root/, 503);
  const cases: [Partial<StagedUpload>, (id: string) => Promise<unknown>][] = [
    [{ write: fail("EIO") }, (id) => uploads.append(REPOSITORY, id, new Hanging(content.subarray(0, 2 * MIB)))],
    [{ write: fail("EIO") }, (id) => uploads.append(REPOSITORY, id, inPieces(content.subarray(0, 10)))],
    [{ write: fail("EIO") }, (id) => uploads.append(REPOSITORY, id, breaking(content.subarray(0, 10)))],
    [{ flush: fail("EIO") }, (id) => uploads.append(REPOSITORY, id, inPieces(content))],
    [{ keep: fail("EIO") }, (id) => uploads.append(REPOSITORY, id, inPieces(content), { lengthBytes: 1 })],
    [
      { read: fail("EIO") },
      async (id) => {
        await uploads.append(REPOSITORY, id, inPieces(content.subarray(0, 10)));
        await uploads.finish(REPOSITORY, id, digestOf(content, "sha512"), undefined, undefined, record(digest));
      },
    ],
    [
      { commit: fail("EIO") },
      (id) => uploads.finish(REPOSITORY, id, digest, inPieces(content), undefined, record(digest)),
    ],
    [{ commit: fail("EIO") }, () => uploads.receive(digest, inPieces(content), undefined, record(digest))],
  ];
  for (const [fault, work] of cases) {
    const { id } = await uploads.start(REPOSITORY, "sha256");
    broken = fault;
    await assert.rejects(work(id), isBroken, Object.keys(fault).join());
    broken = {};
    if ((await bench.files()).length > 0 || uploads.inProgress > 0) {
      // A request without a session leaves this one as it is.
      await uploads.cancel(REPOSITORY, id);
      assert.ok(work === cases.at(-1)?.[1], `${Object.keys(fault).join()} left the session`);
    }
    await assert.rejects(uploads.find(REPOSITORY, id), isUnknown);
    await bench.assertNothing();
  }
  broken = { write: fail("EDQUOT") };
  await assert.rejects(
    uploads.receive(digest, inPieces(content), undefined, record(digest)),
    failsWith("UNAVAILABLE", /disk is full/, 507),
  );
  broken = {};
  await uploads.receive(digest, inPieces(content), undefined, record(digest));
  await bench.assertStored(content, digest);
});

test("a disk that is slower than the client holds it back: two batches in memory, no more", async () => {
  const gate = Promise.withResolvers<void>();
  const reached = Promise.withResolvers<void>();
  await using bench = await startUploads({
    disk: (staged) => ({
      write: async (buffers, position) => {
        reached.resolve();
        await gate.promise;
        await staged.write(buffers, position);
      },
    }),
  });
  const content = randomBytes(20 * MIB);
  const digest = digestOf(content);
  let taken = 0;
  const stalled = Promise.withResolvers<void>();
  async function* body(): AsyncGenerator<Buffer> {
    for await (const piece of inPieces(content)) {
      taken += piece.length;
      if (taken === 2 * MIB) stalled.resolve();
      yield piece;
    }
  }
  const receiving = bench.uploads.receive(digest, body(), undefined, bench.record(digest));
  await reached.promise;
  await stalled.promise;
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(taken, 2 * MIB);
  gate.resolve();
  await receiving;
  await bench.assertStored(content, digest);
});

test("the disk is set to work while the body comes, one flush at a time, and the commit waits for it", async () => {
  let [running, most, flushes] = [0, 0, 0];
  const gate = Promise.withResolvers<void>();
  const flushing = Promise.withResolvers<void>();
  await using bench = await startUploads({
    disk: (staged) => ({
      flush: async () => {
        flushes++;
        most = Math.max(most, ++running);
        flushing.resolve();
        await gate.promise;
        await staged.flush();
        running--;
      },
      commit: async (digest) => {
        assert.equal(running, 0);
        await staged.commit(digest);
      },
    }),
  });
  const content = randomBytes(100 * MIB);
  const digest = digestOf(content);
  async function* body(): AsyncGenerator<Buffer> {
    yield* inPieces(content, MIB);
    await flushing.promise;
    gate.resolve();
  }
  await bench.uploads.receive(digest, body(), undefined, bench.record(digest));
  await bench.assertStored(content, digest);
  assert.equal(most, 1);
  assert.ok(flushes >= 1 && flushes <= 3, String(flushes));
});

test("sessions that nobody goes on with expire, by their last byte; what is under way does not", async () => {
  let nowMs = Date.now();
  await using bench = await startUploads({ clock: { ...systemClock, now: () => nowMs } });
  const { uploads } = bench;
  const begin = async (bytes: number, agoMs: number): Promise<string> => {
    const { id } = await uploads.start(REPOSITORY, "sha256");
    if (bytes > 0) {
      await uploads.append(REPOSITORY, id, inPieces(randomBytes(bytes)));
      const at = new Date(nowMs - agoMs);
      await utimes(bench.pathOf(id), at, at);
    }
    return id;
  };
  const old = await begin(100, LIFE_MS + HOUR_MS);
  const young = await begin(100, LIFE_MS - HOUR_MS);
  const running = await begin(100, LIFE_MS + HOUR_MS);
  const unused = await begin(0, 0);
  // As a whole blob in one request leaves it behind when the daemon is killed.
  const stray = randomUUID();
  await writeFile(bench.pathOf(stray), "x");
  const body = new Hanging();
  const appending = assert.rejects(uploads.append(REPOSITORY, running, body), isTakenOver);
  const whole = new Hanging();
  const receiving = assert.rejects(
    uploads.receive(digestOf(Buffer.from("x")), whole, undefined, () => Promise.resolve()),
    /stopping/,
  );
  await Promise.all([body.starved, whole.starved]);
  const [received] = (await bench.files()).filter((id) => ![old, young, running, stray, unused].includes(id));
  assert.ok(received);
  await utimes(bench.pathOf(received), 0, 0);
  assert.equal(uploads.inProgress, 4);
  assert.equal(await uploads.expire(), 2);
  assert.equal(uploads.inProgress, 3);
  assert.deepEqual((await bench.files()).sort(), [young, running, received].sort());
  await assert.rejects(uploads.find(REPOSITORY, old), isUnknown);
  assert.equal((await uploads.find(REPOSITORY, young)).sizeBytes, 100);
  assert.equal((await uploads.find(REPOSITORY, unused)).sizeBytes, 0);
  await uploads.cancel(REPOSITORY, running);
  await appending;
  nowMs += LIFE_MS;
  // Without a file its beginning counts.
  assert.equal(await uploads.expire(), 2);
  await assert.rejects(uploads.find(REPOSITORY, unused), isUnknown);
  assert.deepEqual(await bench.files(), [received]);
  await uploads[Symbol.asyncDispose]();
  await receiving;
  assert.deepEqual(await bench.files(), []);
  assert.equal(uploads.inProgress, 0);
});

test("stopping interrupts what is under way, keeps what came of it, and lets what is being published end", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(2 * MIB);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  const body = new Hanging(content.subarray(0, MIB + 1));
  const appending = assert.rejects(uploads.append(REPOSITORY, id, body), failsWith("UNAVAILABLE", /stopping/, 503));
  await body.starved;
  const other = randomBytes(100);
  const [recording, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const publishing = uploads.receive(digestOf(other), inPieces(other), undefined, async (sizeBytes) => {
    recording.resolve();
    await gate.promise;
    await record(digestOf(other))(sizeBytes);
  });
  await recording.promise;
  let stopped = false;
  const stopping = uploads[Symbol.asyncDispose]().then(() => (stopped = true));
  await appending;
  assert.equal(body.letGo, true);
  assert.equal(stopped, false);
  gate.resolve();
  await Promise.all([publishing, stopping]);
  await bench.assertStored(other, digestOf(other));
  await assert.rejects(uploads.append(REPOSITORY, id, inPieces(content)), failsWith("UNAVAILABLE", /stopping/));
  const next = await bench.restart();
  const rest = inPieces(content.subarray(MIB + 1));
  await next.finish(REPOSITORY, id, digest, rest, { firstByte: MIB + 1 }, record(digest));
  await bench.assertStored(content, digest);
});

/** Appends what it is sent, over real sockets. */
async function serveAppends(
  uploads: Uploads,
  id: string,
): Promise<
  AsyncDisposable & { send: () => ClientRequest; outcomes: Promise<unknown>[]; arrived: () => Promise<void> }
> {
  const outcomes: Promise<unknown>[] = [];
  const server = createServer((message, response) => {
    const body: AsyncIterable<Buffer> = {
      [Symbol.asyncIterator]: () => message.iterator({ destroyOnReturn: false }) as AsyncIterator<Buffer>,
    };
    const work = uploads.append(REPOSITORY, id, body);
    outcomes.push(
      work.then(
        () => response.writeHead(202).end(),
        (error: unknown) => {
          const refused = error instanceof RegistryError;
          response.writeHead(refused ? error.status : 500, { connection: "close" }).end(() => message.destroy());
          throw error;
        },
      ),
    );
    for (const outcome of outcomes) outcome.catch(() => undefined);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    outcomes,
    arrived: async () => void (await once(server, "request")),
    send: () => {
      const sent = request({ host: "127.0.0.1", port, method: "PATCH", agent: false });
      sent.on("error", () => undefined);
      return sent;
    },
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 5));
}

test("a client whose connection is cut goes on from what came", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(3 * MIB);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await using server = await serveAppends(uploads, id);
  const sent = server.send();
  sent.write(content.subarray(0, 2 * MIB));
  await until(async () => (await uploads.find(REPOSITORY, id)).sizeBytes > 0);
  sent.destroy();
  await assert.rejects(server.outcomes[0] ?? Promise.resolve(), { code: "ECONNRESET" });
  const { sizeBytes } = await uploads.find(REPOSITORY, id);
  assert.ok(sizeBytes >= MIB && sizeBytes <= 2 * MIB);
  const rest = inPieces(content.subarray(sizeBytes));
  await uploads.finish(REPOSITORY, id, digest, rest, { firstByte: sizeBytes }, record(digest));
  await bench.assertStored(content, digest);
});

test("a client that comes back before its dead connection is noticed is answered, and the dead one is closed", async () => {
  await using bench = await startUploads();
  const { uploads, record } = bench;
  const content = randomBytes(3 * MIB);
  const digest = digestOf(content);
  const { id } = await uploads.start(REPOSITORY, "sha256");
  await using server = await serveAppends(uploads, id);
  const dead = server.send();
  const answered = once(dead, "response") as Promise<[IncomingMessage]>;
  const closed = once(dead, "close");
  dead.write(content.subarray(0, 2 * MIB));
  await until(async () => (await uploads.find(REPOSITORY, id)).sizeBytes > 0);
  const again = server.send();
  const arrived = server.arrived();
  again.flushHeaders();
  await arrived;
  const [refused] = await answered;
  assert.equal(refused.statusCode, 400);
  refused.resume();
  await closed;
  await assert.rejects(server.outcomes[0] ?? Promise.resolve(), isTakenOver);
  const { sizeBytes } = await uploads.find(REPOSITORY, id);
  again.end(content.subarray(sizeBytes));
  const [accepted] = (await once(again, "response")) as [IncomingMessage];
  assert.equal(accepted.statusCode, 202);
  accepted.resume();
  await uploads.finish(REPOSITORY, id, digest, undefined, undefined, record(digest));
  await bench.assertStored(content, digest);
});

test("whatever happens to an upload, its offset is what the file has and its end is proven", async () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constantFrom("append", "break", "lie", "misplace"), bytes: fc.nat(1_300_000) }),
    fc.record({ kind: fc.constantFrom("restart", "other algorithm"), bytes: fc.constant(0) }),
  );
  await using bench = await startUploads();
  let { uploads } = bench;
  const source = randomBytes(1_300_000);
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 8 }), fc.nat(), async (steps, salt) => {
      const { id } = await uploads.start(REPOSITORY, "sha256");
      const pieces: Buffer[] = [Buffer.from(String(salt))];
      await uploads.append(REPOSITORY, id, inPieces(pieces[0] as Buffer));
      let sizeBytes = pieces[0]?.length ?? 0;
      for (const { kind, bytes } of steps) {
        const part = source.subarray(0, bytes);
        if (kind === "restart") uploads = await bench.restart();
        else if (kind === "append" || kind === "break") {
          const sent = uploads.append(REPOSITORY, id, kind === "append" ? inPieces(part) : breaking(part));
          if (kind === "append") await sent;
          else await assert.rejects(sent, /the line broke/);
          pieces.push(part);
          sizeBytes += bytes;
        } else if (kind === "other algorithm") {
          const digest = digestOf(source, "sha512");
          const sent = uploads.finish(REPOSITORY, id, digest, breaking(part), undefined, bench.record(digest));
          await assert.rejects(sent, /the line broke/);
        } else {
          const placement = kind === "lie" ? { lengthBytes: bytes + 1 } : { firstByte: sizeBytes + 1 };
          await assert.rejects(uploads.append(REPOSITORY, id, inPieces(part), placement), RegistryError);
        }
        assert.equal((await uploads.find(REPOSITORY, id)).sizeBytes, sizeBytes);
      }
      const content = Buffer.concat(pieces);
      const digest = `sha256:${createHash("sha256").update(content).digest("hex")}` as Digest;
      await uploads.finish(REPOSITORY, id, digest, undefined, { firstByte: sizeBytes }, bench.record(digest));
      await bench.assertStored(content, digest);
    }),
    { numRuns: 25 },
  );
});
