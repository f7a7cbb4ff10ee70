import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import * as fc from "fast-check";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { FileBlobStore } from "../../src/store/blobs-fs.ts";
import type { BlobReader } from "../../src/store/blobs.ts";
import { Downloads, type FlightPlan, type Space } from "../../src/transfer/download.ts";
import { DigestMismatch, type BlobSource } from "../../src/transfer/source.ts";
import { ScriptedSource, type Script } from "./scripted-source.ts";

let root: string;
before(async () => {
  root = await mkdtemp(join(tmpdir(), "entrepot-flight-"));
});
after(() => rm(root, { recursive: true, force: true }));

const KIB = 1024;
/** Time in which no pause between two tries takes long. */
const HASTE: Clock = { now: () => Date.now(), sleep: (_ms, signal) => systemClock.sleep(0, signal) };

interface Bench extends AsyncDisposable {
  store: FileBlobStore;
  downloads: Downloads;
  committed: Digest[];
  mismatches: string[];
  faults: string[];
  /** Bytes that are reserved now. */
  reserved(): number;
  plan(digest: Digest, sources: BlobSource[], more?: Partial<FlightPlan>): FlightPlan;
  folder: string;
}

async function startBench(roomBytes = Infinity): Promise<Bench> {
  const folder = await mkdtemp(join(root, "bench-"));
  const store = await FileBlobStore.open(folder);
  const committed: Digest[] = [];
  const mismatches: string[] = [];
  const faults: string[] = [];
  let reserved = 0;
  const space: Space = {
    reserve: async (bytes) => {
      if (reserved + bytes > roomBytes) return undefined;
      reserved += bytes;
      let held = true;
      return {
        written: () => undefined,
        release: () => {
          if (held) reserved -= bytes;
          held = false;
        },
      };
    },
  };
  const downloads = new Downloads({
    store,
    space,
    clock: HASTE,
    onFault: (operation) => faults.push(operation),
    onMismatch: (source) => mismatches.push(source),
  });
  return {
    store,
    downloads,
    committed,
    mismatches,
    faults,
    reserved: () => reserved,
    folder,
    plan: (digest, sources, more = {}) => ({
      digest,
      sources,
      spares: [],
      claimedSizeBytes: undefined,
      ranges: { connections: 1, minSize: 0, segment: 1, slowerThan: 0 },
      committed: async () => void committed.push(digest),
      ended: () => undefined,
      ...more,
    }),
    [Symbol.asyncDispose]: async () => {
      await downloads[Symbol.asyncDispose]();
      assert.equal(reserved, 0, "nothing stays reserved");
    },
  };
}

interface Reading {
  bytes: Buffer;
  error: unknown;
}

/** Reads from `from` in pieces, as a client that pauses between them; what was given out before an error counts, too. */
async function readAll(reader: BlobReader, pieceBytes: number, slowness = 0, from = 0): Promise<Reading> {
  const pieces: Buffer[] = [];
  let position = from;
  try {
    for (;;) {
      for (let i = 0; i < slowness; i++) await turn();
      const piece = Buffer.alloc(pieceBytes);
      const bytes = await reader.read(piece, position);
      if (bytes === 0) return { bytes: Buffer.concat(pieces), error: undefined };
      pieces.push(piece.subarray(0, bytes));
      position += bytes;
    }
  } catch (error) {
    return { bytes: Buffer.concat(pieces), error };
  } finally {
    reader.close();
  }
}

const scripts: fc.Arbitrary<Script> = fc.record(
  {
    cutAfter: fc.nat(700 * KIB),
    ignoresRange: fc.boolean(),
    slowness: fc.nat(3),
    // Now and then for longer than it takes to call a connection slow.
    napMs: fc.constantFrom(0, 0, 0, 0, 0, 10),
    pieceBytes: fc.integer({ min: 5000, max: 100_000 }),
  },
  { requiredKeys: [] },
);
const readers = fc.array(
  fc.record({ pieceBytes: fc.integer({ min: 1000, max: 600_000 }), slowness: fc.nat(4), late: fc.nat(30) }),
  { minLength: 1, maxLength: 6 },
);

test("whatever breaks, ignores ranges or dawdles: every reader gets the exact bytes, or an error before the end", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        sizeBytes: fc.nat(900 * KIB),
        scripts: fc.array(scripts, { maxLength: 6 }),
        readers,
        connections: fc.constantFrom(1, 4),
        liar: fc.boolean(),
        hidesSize: fc.boolean(),
        roomBytes: fc.constantFrom(Infinity, Infinity, 100 * KIB),
        vanishing: fc.boolean(),
      }),
      async (given) => {
        await using bench = await startBench(given.roomBytes);
        const content = randomBytes(given.sizeBytes);
        const digest = digestOf(content);
        const wrong = Buffer.from(content);
        if (wrong.length > 0) wrong[wrong.length >> 1] = (wrong[wrong.length >> 1] ?? 0) ^ 1;
        const say = (script: Script): Script => ({ ...script, hidesSize: given.hidesSize });
        const honest = new ScriptedSource("honest", content, given.scripts.map(say));
        const lies = given.liar && content.length > 0;
        const sources = lies
          ? [new ScriptedSource("liar", wrong, given.scripts.slice(0, 2).map(say)), honest]
          : [honest];
        const plan = (): FlightPlan =>
          bench.plan(digest, sources, {
            claimedSizeBytes: content.length,
            // Slow by decree after a tenth of a second; else every segment is a request of its own.
            ranges: { connections: given.connections, minSize: 1, segment: 64 * KIB, slowerThan: Infinity },
          });
        const readings = await Promise.all(
          given.readers.map(async ({ pieceBytes, slowness, late }, index) => {
            for (let i = 0; i < late; i++) await turn();
            let reader: BlobReader;
            try {
              reader = await bench.downloads.open(plan());
            } catch (error) {
              return { bytes: Buffer.alloc(0), error };
            }
            if (given.vanishing && index === 0) {
              await reader.read(Buffer.alloc(1000), 0).catch(() => 0);
              reader.close();
              return undefined;
            }
            return readAll(reader, pieceBytes, slowness);
          }),
        );
        for (const reading of readings) {
          if (!reading) continue;
          if (reading.error === undefined)
            assert.ok(reading.bytes.equals(content), "a body that ended is the right one");
          else if (!lies || !(reading.error instanceof DigestMismatch)) throw reading.error;
          assert.ok(reading.error === undefined || reading.bytes.length < content.length, "what is wrong never ends");
        }
        await bench.downloads[Symbol.asyncDispose]();
        if (bench.committed.length > 0) {
          const hex = hexOf(digest);
          assert.ok((await readFile(join(bench.folder, "blobs/sha256", hex.slice(0, 2), hex))).equals(content));
          assert.deepEqual(await readdir(join(bench.folder, "staging")), []);
        }
        assert.ok(
          bench.mismatches.every((name) => name === "liar"),
          bench.mismatches.join(),
        );
      },
    ),
    { numRuns: 100 },
  );
});

test("over several connections that break and dawdle: every reader gets the exact bytes in order, each byte is fetched once", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 400 * KIB, max: 900 * KIB }),
      fc.array(
        fc.record({
          cutAfter: fc.option(fc.nat(64 * KIB), { nil: undefined }),
          napMs: fc.integer({ min: 5, max: 30 }),
        }),
        { minLength: 10, maxLength: 10 },
      ),
      readers,
      async (sizeBytes, given, clients) => {
        await using bench = await startBench();
        const content = randomBytes(sizeBytes);
        const digest = digestOf(content);
        // The first one is slow for longer than it takes to notice.
        const source = new ScriptedSource("slow", content, [
          { napMs: 15, pieceBytes: 4 * KIB },
          ...given.map(({ cutAfter, napMs }) => ({
            napMs,
            pieceBytes: 20 * KIB,
            ...(cutAfter === undefined ? {} : { cutAfter }),
          })),
        ]);
        const plan = bench.plan(digest, [source], {
          claimedSizeBytes: content.length,
          ranges: { connections: 4, minSize: 1, segment: 64 * KIB, slowerThan: Infinity },
        });
        const readings = await Promise.all(
          clients.map(async ({ pieceBytes, slowness }) =>
            readAll(await bench.downloads.open(plan), pieceBytes, slowness),
          ),
        );
        for (const { bytes, error } of readings) {
          if (error !== undefined) throw error;
          assert.ok(bytes.equals(content));
        }
        assert.ok(source.most > 1, "it came over several connections");
        assert.equal(source.sent, content.length);
      },
    ),
    { numRuns: 15 },
  );
});

test("a connection that breaks after the last byte of a blob of unknown size does not fail it, stored or passed through", async () => {
  for (const roomBytes of [Infinity, 10]) {
    await using bench = await startBench(roomBytes);
    const content = randomBytes(50 * KIB);
    const script = { hidesSize: true, cutAfter: content.length };
    const source = new ScriptedSource("untold", content, [script, script]);
    const reader = await bench.downloads.open(bench.plan(digestOf(content), [source]));
    const { bytes, error } = await readAll(reader, 10_000);
    assert.equal(error, undefined);
    assert.ok(bytes.equals(content));
  }
});

test("of a blob whose size nobody told, no more is stored than there is room for", async () => {
  await using bench = await startBench(6000 * KIB);
  const content = randomBytes(9000 * KIB);
  const digest = digestOf(content);
  const source = new ScriptedSource(
    "untold",
    content,
    Array.from({ length: 3 }, () => ({ hidesSize: true })),
  );
  const { bytes, error } = await readAll(await bench.downloads.open(bench.plan(digest, [source])), 100_000);
  assert.equal(error, undefined);
  assert.ok(bytes.equals(content));
  assert.deepEqual(bench.committed, []);
  assert.deepEqual(await readdir(join(bench.folder, "staging")), []);
});
