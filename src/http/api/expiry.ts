import { z } from "zod";
import { parseExpiry } from "../../access/limits.ts";
import type { Milliseconds } from "../../base/clock.ts";
import { Problem } from "./problem.ts";

/** Until when a secret is good, as a body says it. */
export const expires = z
  .string()
  .max(40)
  .describe("Until when: a duration from now (`90d`), a day (`2027-01-31`: as it begins, UTC), a time, or `never`.")
  .meta({ examples: ["90d"] });

/** @returns milliseconds since 1970; Infinity: never @throws Problem invalid-input */
export function expiryOf(text: string, nowMs: Milliseconds): Milliseconds {
  const atMs = parseExpiry(text, nowMs);
  if (atMs !== undefined) return atMs;
  const message =
    "is not a duration (90d), a day (2027-01-31) or a time (2027-01-31T12:00:00Z) that is still to come, nor never";
  throw new Problem("invalid-input", `expires: ${message}`, { errors: [{ in: "body", at: "expires", message }] });
}
