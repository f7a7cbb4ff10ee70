/**
 * Buffers that a blob is read into on its way from this registry to another one, used again and again: fresh ones would pile up by tens of
 * MiB until they are collected.
 */
import type { Bytes } from "../base/clock.ts";

export const PIECE_BYTES: Bytes = 256 * 1024;
/** More than that are left to the garbage collector. */
const MOST_KEPT = 64;

const kept: Buffer[] = [];
const ours = new WeakSet<ArrayBufferLike>();

/** A buffer of {@link PIECE_BYTES}. Who gets it may keep it. */
export function takePiece(): Buffer {
  const known = kept.pop();
  if (known) return known;
  const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
  ours.add(piece.buffer);
  return piece;
}

/** Takes back a piece, or a part of one, that nobody will read any more. Others than those of {@link takePiece} are left alone. */
export function givePiece({ buffer }: Buffer): void {
  if (ours.has(buffer) && kept.length < MOST_KEPT) kept.push(Buffer.from(buffer));
}
