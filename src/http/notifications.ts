/**
 * Where other registries tell of pushes to them: `POST /api/v1/replication/registries/{registry}/notifications`. It is no operation of the
 * API: who sends has no account here, but the registry's secret, and may say it in the query, since not all of them send headers.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type Koa from "koa";
import { Brakes } from "../access/brakes.ts";
import type { Requester } from "../events/event.ts";
import type { Clock } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { Transactions } from "../db/database.ts";
import type { Journal } from "../events/journal.ts";
import { NotificationUnread, readNotification, type ToldPush } from "../replication/notifications.ts";
import type { PushedWithin } from "../replication/push-events.ts";
import { Problem } from "./api/problem.ts";
import { readBody } from "./body.ts";
import { stateOf } from "./exchange.ts";
import type { ProgressRule } from "./send.ts";

export interface NotificationsDeps {
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Pick<Config, "access" | "replication">;
  db: Transactions;
  pushedWithin: PushedWithin;
  wake: (kind: string) => void;
  /** Is told what is denied. */
  journal: Pick<Journal, "note">;
  clock: Clock;
  progress: ProgressRule;
}

/** What is no registry's name is not repeated in the record of events. */
const PATH = /^\/api\/v1\/replication\/registries\/([a-z0-9._-]{1,255})\/notifications$/;
const MAX_BODY_BYTES = 1024 * 1024;
/** Pushes of a transaction: some milliseconds of the event loop. */
const MOST_TOGETHER = 50;

export function notificationRoutes(deps: NotificationsDeps): Koa.Middleware {
  const { config, journal, clock, progress } = deps;
  const brakes = new Brakes(() => config().access.brakes);

  /** @throws Problem unauthorized; too-many-requests */
  const checkSecret = (request: IncomingMessage, registry: string, by: Requester): void => {
    const verdict = brakes.secret(by.address, clock.now());
    if (verdict.kind !== "go") {
      throw new Problem("too-many-requests", "there were too many wrong secrets from this address", {
        retryAfterSeconds: verdict.kind === "spent" ? verdict.retryAfterMs / 1000 : 1,
      });
    }
    const { registries } = config().replication;
    const wanted = Object.hasOwn(registries, registry) ? registries[registry]?.notifications?.secret : undefined;
    const right = isSame(secretOf(request), wanted);
    verdict.attempt.end(right ? "right" : "wrong", clock.now());
    if (right) return;
    const detail = `a wrong secret in a notification of the registry ${registry}`;
    journal.note({ action: "login", outcome: "denied", by, detail });
    // The same for a registry that there is not: names are not told to strangers.
    throw new Problem(
      "unauthorized",
      "send the secret of replication.registries.NAME.notifications as Bearer, as the password of Basic, or as ?secret=",
    );
  };

  return async (ctx, next) => {
    const registry = PATH.exec((ctx.req.url ?? "").split("?", 1)[0] ?? "")?.[1];
    if (registry === undefined) {
      await next();
      return;
    }
    const { requester, note } = stateOf(ctx);
    note({ handler: "api" });
    if (ctx.method !== "POST") {
      throw new Problem("method-not-allowed", `${ctx.method} is not supported here: POST may be sent`, {
        allow: ["POST"],
      });
    }
    checkSecret(ctx.req, registry, requester());
    const tooLarge = (): Problem => new Problem("too-large", `the body is larger than ${MAX_BODY_BYTES} bytes`);
    const pushes = read(await readBody(ctx.req, MAX_BODY_BYTES, progress, tooLarge), ctx.req);
    const begun = await add(registry, pushes, deps);
    ctx.status = 202;
    ctx.set("cache-control", "no-store");
    ctx.body = { pushes: pushes.length, begun };
  };
}

/** @returns how many of them begin copies */
async function add(
  registry: string,
  pushes: readonly ToldPush[],
  { db, pushedWithin, wake }: NotificationsDeps,
): Promise<number> {
  let begun = 0;
  for (let from = 0; from < pushes.length; from += MOST_TOGETHER) {
    // Durable: the sender does not tell again what was taken.
    const woken = await db.transaction("durable", async (tx) => {
      const lanes: string[] = [];
      for (const push of pushes.slice(from, from + MOST_TOGETHER)) {
        const added = await pushedWithin(tx, { registry, ...push }, "webhook");
        lanes.push(...added);
        if (added.length > 0) begun++;
      }
      return new Set(lanes);
    });
    for (const lane of woken) wake(lane);
  }
  return begun;
}

/** @throws Problem malformed-request */
function read(body: Buffer, { headers }: IncomingMessage): ToldPush[] {
  let given: unknown;
  try {
    given = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch (cause) {
    throw new Problem("malformed-request", "the body is not JSON in UTF-8", { cause });
  }
  try {
    return readNotification(given, headers);
  } catch (cause) {
    if (!(cause instanceof NotificationUnread)) throw cause;
    throw new Problem("malformed-request", cause.message, { cause });
  }
}

/** What the sender presents. Some registries send the header just as it was given to them. */
function secretOf({ url = "", headers: { authorization } }: IncomingMessage): string | undefined {
  if (authorization === undefined) {
    const [, query = ""] = url.split("?", 2);
    return new URLSearchParams(query).get("secret") ?? undefined;
  }
  const [, scheme = "", value = authorization] = /^(\S+) +(.+)$/.exec(authorization) ?? [];
  if (scheme.toLowerCase() !== "basic") return value;
  return Buffer.from(value, "base64")
    .toString("utf8")
    .replace(/^[^:]*:/, "");
}

/** Takes as long, whatever they have in common. */
function isSame(given: string | undefined, wanted: string | undefined): boolean {
  const same = timingSafeEqual(hashOf(given ?? ""), hashOf(wanted ?? ""));
  return same && given !== undefined && wanted !== undefined;
}

function hashOf(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
