import assert from "node:assert/strict";
import { systemClock, type Clock, type Milliseconds } from "../../src/base/clock.ts";
import { digestOf } from "../../src/oci/digest.ts";
import type { Image, ImageBlob, Published } from "../kit/images.ts";
import type { Answer } from "../kit/registry.ts";

/** Time goes on as it does, moved by what a test adds to `offsetMs`. */
export class MovingClock implements Clock {
  offsetMs: Milliseconds = 0;

  now(): Milliseconds {
    return Date.now() + this.offsetMs;
  }

  sleep(ms: Milliseconds, signal?: AbortSignal): Promise<void> {
    return systemClock.sleep(ms, signal);
  }
}

export const SECOND: Milliseconds = 1000;
export const MINUTE: Milliseconds = 60 * SECOND;
export const DAY: Milliseconds = 24 * 60 * MINUTE;

/** Code and message of an error in OCI's shape; empty for any other body. */
export function errorOf({ bytes }: Pick<Answer, "bytes">): { code: string; message: string } {
  const { errors } = JSON.parse(bytes.toString()) as { errors?: { code: string; message: string }[] };
  return errors?.[0] ?? { code: "", message: "" };
}

export function jsonOf(answer: Pick<Answer, "bytes">): Record<string, unknown> {
  return JSON.parse(answer.bytes.toString()) as Record<string, unknown>;
}

/** A manifest of any content. */
export function published(body: unknown, mediaType: string): Published {
  const manifest = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body));
  return { manifest, mediaType, digest: digestOf(manifest) };
}

export function layerOf(image: Image, index = 0): ImageBlob {
  const layer = image.layers[index];
  assert.ok(layer);
  return layer;
}
