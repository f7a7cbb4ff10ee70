import assert from "node:assert/strict";
import { test } from "node:test";
import { givePiece, PIECE_BYTES, takePiece } from "../../src/replication/pieces.ts";

test("a piece that nobody reads any more is used again, also if only a part of it was read", () => {
  const piece = takePiece();
  assert.equal(piece.byteLength, PIECE_BYTES);
  givePiece(piece.subarray(1000, 2000));
  const again = takePiece();
  assert.equal(again.buffer, piece.buffer);
  assert.equal(again.byteLength, PIECE_BYTES);
  assert.notEqual(takePiece().buffer, piece.buffer, "nobody else gets it meanwhile");
});

test("what belongs to others is left alone", () => {
  const theirs = Buffer.allocUnsafeSlow(PIECE_BYTES);
  givePiece(theirs);
  assert.notEqual(takePiece().buffer, theirs.buffer);
});
