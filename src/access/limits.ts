/** What robots and tokens are limited to, and until when: how it is written, checked and read. Pure. */
import { z } from "zod";
import type { Milliseconds } from "../base/clock.ts";
import { parseDuration } from "../config/units.ts";
import { isGlob } from "./globs.ts";
import { VERBS, type Limit } from "./principal.ts";

const MAX_LIMITS = 20;
const MAX_GLOBS = 50;
/** Of all limits together: every request is held against all of them. */
const MAX_GLOBS_IN_ALL = 100;

const glob = z
  .string()
  .refine(
    isGlob,
    "is not a glob of repositories: write components of a-z, 0-9, . _ - and :, joined by /, * for any text in one, ** for any components",
  )
  .meta({ maxLength: 255, examples: ["team/**"] });

const limit = z
  .strictObject({
    repositories: z.array(glob).min(1).max(MAX_GLOBS).describe("Globs of full repository names; any of them will do."),
    verbs: z
      .array(z.enum(VERBS))
      .min(1)
      .max(VERBS.length)
      .describe("What may be done to these. create: push what moves no tag; push: that, too."),
  })
  .meta({ id: "Limit", description: "Repositories, and what may be done to them." });

/** What is left of somebody's rights: the union of these. */
export const limitsSchema = z
  .array(limit)
  .min(1)
  .max(MAX_LIMITS)
  .refine(
    (limits) => limits.reduce((sum, { repositories }) => sum + repositories.length, 0) <= MAX_GLOBS_IN_ALL,
    `has more than ${MAX_GLOBS_IN_ALL} globs in all: take wider ones, or several robots or tokens`,
  );

/** All that may be done to repositories. What has a limit may not administrate, so that is still less than everything. */
export const WITHOUT_LIMITS: readonly Limit[] = [{ repositories: ["**"], verbs: VERBS }];

/** Limits of a row. @throws Error for a text that {@link limitsSchema} would not have let in */
export function parseLimits(json: string): readonly Limit[] {
  return limitsSchema.parse(JSON.parse(json));
}

/** `pull, push of team/**; pull of **`, for people. */
export function limitsText(limits: readonly Limit[]): string {
  return limits.map(({ repositories, verbs }) => `${verbs.join(", ")} of ${repositories.join(", ")}`).join("; ");
}

/** The last moment of which ISO 8601 has a short form. */
const LATEST_MS: Milliseconds = Date.UTC(9999, 11, 31);

/**
 * When something ends that is written as a duration from now (`90d`), a day (`2027-01-31`: as it begins, in UTC), a time with its offset
 * (`2027-01-31T12:00:00Z`), or `never`.
 * @returns milliseconds since 1970; Infinity: never; undefined: it is written in another way, or not in the future
 */
export function parseExpiry(text: string, nowMs: Milliseconds): Milliseconds | undefined {
  if (text === "never") return Infinity;
  const lifeMs = parseDuration(text);
  const atMs = lifeMs === undefined ? parseMoment(text) : nowMs + lifeMs;
  return atMs !== undefined && atMs > nowMs && atMs <= LATEST_MS ? atMs : undefined;
}

const MOMENT = z.union([z.iso.date(), z.iso.datetime({ offset: true })]);

function parseMoment(text: string): Milliseconds | undefined {
  return MOMENT.safeParse(text).success ? Date.parse(text) : undefined;
}
