import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import * as fc from "fast-check";
import { digestOf } from "../../src/oci/digest.ts";
import type { ByteRange } from "../../src/oci/range.ts";
import type { BlobAnswer } from "../../src/registry/answers.ts";
import { RemoteError } from "../../src/remote/remote-error.ts";
import { bodyOf } from "../../src/replication/reader-body.ts";
import { DigestMismatch } from "../../src/transfer/source.ts";

const KIB = 1024;

/** A blob whose bytes come in pieces of a size. */
class Reading {
  readonly sizeBytes: number;
  narrowed: ByteRange | undefined;
  closed = 0;
  /** Of the next read. */
  work: () => Promise<void> = async () => undefined;
  readonly #bytes: Buffer;
  readonly #pieceBytes: number;

  constructor(bytes: Buffer, pieceBytes: number) {
    this.#bytes = bytes;
    this.#pieceBytes = pieceBytes;
    this.sizeBytes = bytes.length;
  }

  narrow(range: ByteRange): void {
    this.narrowed = range;
  }

  async read(target: Buffer, position: number): Promise<number> {
    await this.work();
    return this.#bytes.copy(target, 0, position, position + Math.min(target.length, this.#pieceBytes));
  }

  close(): void {
    this.closed++;
  }
}

function answerOf(content: Buffer | Reading): BlobAnswer {
  const bytes = Buffer.isBuffer(content) ? content : Buffer.alloc(0);
  const sizeBytes = Buffer.isBuffer(content) ? content.length : content.sizeBytes;
  return { digest: digestOf(bytes), sizeBytes, content, upstream: undefined, result: "hit" };
}

async function read(body: AsyncIterable<Buffer>): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of body) pieces.push(piece);
  return Buffer.concat(pieces);
}

const sizes = fc.oneof(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 250 * KIB, max: 800 * KIB }));

test("any part of a blob is that part of it, from memory and from a reader, which is closed then", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        sizeBytes: sizes,
        from: fc.nat(),
        length: fc.option(fc.nat()),
        pieceBytes: fc.integer({ min: 1, max: 512 * KIB }),
      }),
      async ({ sizeBytes, from, length, pieceBytes }) => {
        const bytes = Buffer.from(Array.from({ length: sizeBytes }, (_, at) => at % 251));
        const firstByte = sizeBytes === 0 ? 0 : from % sizeBytes;
        const lastByte = length === null ? undefined : firstByte + (length % (sizeBytes + 10));
        const expected = bytes.subarray(firstByte, lastByte === undefined ? undefined : lastByte + 1);
        const reading = new Reading(bytes, Math.max(pieceBytes, Math.ceil(sizeBytes / 50)));
        for (const content of [bytes, reading]) {
          const opened = await bodyOf("self", Promise.resolve(answerOf(content)), { firstByte, lastByte });
          assert.deepEqual([opened.firstByte, opened.sizeBytes], [firstByte, sizeBytes]);
          assert.ok((await read(opened.body)).equals(expected));
        }
        assert.equal(reading.closed, 1);
        const { narrowed } = reading;
        if (narrowed) assert.deepEqual(bytes.subarray(narrowed.firstByte, narrowed.lastByte + 1), expected);
      },
    ),
    { numRuns: 60 },
  );
});

test("whoever gives up is told at once, and nothing stays open", async () => {
  const given = new AbortController();
  const reading = new Reading(Buffer.alloc(10), 10);
  reading.work = () => new Promise(() => undefined);
  const { body } = await bodyOf("self", Promise.resolve(answerOf(reading)), { signal: given.signal });
  const failed = assert.rejects(read(body), /enough/);
  given.abort(new Error("enough"));
  await failed;
  assert.equal(reading.closed, 1);

  const late = Promise.withResolvers<BlobAnswer>();
  await assert.rejects(bodyOf("self", late.promise, { signal: given.signal }), /enough/);
  const another = new Reading(Buffer.alloc(10), 10);
  late.resolve(answerOf(another));
  await late.promise;
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(another.closed, 1);
});

test("a body that nobody reads to its end is closed", async () => {
  const reading = new Reading(Buffer.alloc(10), 1);
  const { body } = await bodyOf("self", Promise.resolve(answerOf(reading)), {});
  body.destroy();
  await once(body, "close");
  assert.equal(reading.closed, 1);
});

test("what can't be read breaks off, and a wrong digest is the source's fault", async () => {
  const faultOf = async (cause: Error): Promise<RemoteError> => {
    const reading = new Reading(Buffer.alloc(10), 10);
    reading.work = () => Promise.reject(cause);
    const { body } = await bodyOf("hub.example", Promise.resolve(answerOf(reading)), {});
    const fault: unknown = await read(body).catch((caught: unknown) => caught);
    assert.ok(fault instanceof RemoteError);
    return fault;
  };
  assert.equal((await faultOf(new Error("EIO"))).fault, "interrupted");
  assert.equal((await faultOf(new DigestMismatch("other bytes"))).fault, "protocol");
  const own = new RemoteError("timeout", "hub.example", "is slow");
  assert.equal(await faultOf(own), own);
});

test("a part that begins beyond the end is refused", async () => {
  const reading = new Reading(Buffer.alloc(10), 10);
  await assert.rejects(bodyOf("self", Promise.resolve(answerOf(reading)), { firstByte: 10 }), /has no byte 10/);
  assert.equal(reading.closed, 1);
});
