import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Webhooks, WebhookState } from "../../events/webhooks.ts";
import type { Failure } from "../../events/webhook-rows.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, wholeNumber, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { amount, time } from "./schemas.ts";

const eventId = z.int().min(0).max(Number.MAX_SAFE_INTEGER);

const webhook = z
  .object({
    name: z.string(),
    url: z.string(),
    format: z.enum(["distribution", "cloudevents"]),
    actions: z.array(z.string()),
    repositories: z.array(z.string()),
    signed: z.boolean().describe("Whether it has a secret."),
    cursor: eventId.describe("The last event that it has been told, or that was set aside or is not for it."),
    pending: amount.describe("Events that were recorded since."),
    deliveredAt: time.optional().describe("Of the last success."),
    failingSince: time.optional().describe("Absent: the last delivery succeeded."),
    failures: amount.describe("How often in a row it has failed."),
    retryAt: time.optional(),
    error: z.string().optional().describe("Of the last failure, until a success."),
  })
  .meta({ id: "Webhook", description: "An address that is told what happens." });

const failure = z
  .object({
    id: z.int().min(1),
    firstEvent: eventId,
    lastEvent: eventId,
    events: amount.describe("How many of the events in between were for it."),
    error: z.string(),
    at: time,
    redeliveredAt: time.optional(),
  })
  .meta({ id: "WebhookFailure", description: "Events that an endpoint did not take however often they were sent." });

const redelivery = z
  .object({ job: z.int().min(1).describe("The job that sends them: see /jobs/{id}.") })
  .meta({ id: "WebhookRedelivery" });

const redeliverBody = z
  .strictObject({
    from: eventId.optional().describe("The first event's id."),
    to: eventId.optional().describe("The last event's id; the newest one without it."),
    since: z.iso.datetime({ offset: true }).optional().describe("Events from then on, instead of `from` and `to`."),
  })
  .refine(
    ({ from, to, since }) =>
      (since === undefined) !== (from === undefined) && (since === undefined || to === undefined),
    {
      message: "expected either since, or from with or without to",
    },
  )
  .refine(({ from = 0, to = from }) => from <= to, { message: "expected no smaller id than from", path: ["to"] });

const ping = z
  .object({
    id: z.string().describe("Of the event and the delivery."),
    delivered: z.boolean(),
    ms: amount,
    error: z.string().optional().describe("Why it was not taken."),
  })
  .meta({ id: "WebhookPing" });

const name = z.string().regex(/^[a-z0-9][a-z0-9-]{0,62}$/);

/** Who is told what happens, and what they were not told. */
export function webhookOperations({ webhooks }: { webhooks: Webhooks }): Operation[] {
  const found = <T>(value: T | undefined, endpoint: string): T => {
    if (value === undefined) throw new Problem("not-found", `no webhook is called ${endpoint}`);
    return value;
  };
  return [
    operation({
      id: "listWebhooks",
      method: "GET",
      path: "/webhooks",
      tag: "webhooks",
      summary: "Lists webhooks with how far each has been told, in order of their names",
      query: paging,
      answers: { 200: { description: "A page of webhooks", schema: pageOf(webhook) } },
      handle: async ({ query: { limit, cursor } }) => {
        const after = readCursor(z.string(), cursor) ?? "";
        const states = (await webhooks.states()).filter(({ config }) => config.name > after);
        const items = states.toSorted((a, b) => (a.config.name < b.config.name ? -1 : 1)).slice(0, limit);
        return { status: 200, body: pageBody(items.map(answerOf), limit, () => items.at(-1)?.config.name) };
      },
    }),
    operation({
      id: "getWebhook",
      method: "GET",
      path: "/webhooks/{name}",
      tag: "webhooks",
      summary: "Tells how far a webhook has been told, and what keeps it from more",
      params: { name },
      answers: { 200: { description: "The webhook", schema: webhook } },
      problems: ["not-found"],
      handle: async ({ params }) => ({
        status: 200,
        body: answerOf(found(await webhooks.state(params.name), params.name)),
      }),
    }),
    operation({
      id: "listWebhookFailures",
      method: "GET",
      path: "/webhooks/{name}/failures",
      tag: "webhooks",
      summary: "Lists what a webhook did not take however often it was sent, newest first",
      params: { name },
      query: paging,
      answers: { 200: { description: "A page of failures", schema: pageOf(failure) } },
      problems: ["not-found"],
      handle: async ({ params, query: { limit, cursor } }) => {
        const before = readCursor(z.int(), cursor);
        const failures = found(await webhooks.failures(params.name, before, limit), params.name);
        return { status: 200, body: pageBody(failures.map(failureAnswer), limit, () => failures.at(-1)?.id) };
      },
    }),
    operation({
      id: "redeliverWebhookFailure",
      method: "POST",
      path: "/webhooks/{name}/failures/{id}/redeliver",
      tag: "webhooks",
      summary: "Sends once more what a webhook did not take",
      params: { name, id: wholeNumber(1, Number.MAX_SAFE_INTEGER) },
      answers: { 202: { description: "A job sends it", schema: redelivery } },
      problems: ["not-found"],
      handle: async ({ params }) => {
        found(await webhooks.state(params.name), params.name);
        const job = await webhooks.redeliverFailure(params.name, params.id);
        if (job === undefined) throw new Problem("not-found", `the webhook ${params.name} has no failure ${params.id}`);
        return { status: 202, body: { job } };
      },
    }),
    operation({
      id: "redeliverWebhook",
      method: "POST",
      path: "/webhooks/{name}/redeliver",
      tag: "webhooks",
      summary: "Sends events of the past once more, as far as they are kept",
      description: "They keep their ids, and arrive in order, but side by side with what happens meanwhile.",
      params: { name },
      body: redeliverBody,
      answers: { 202: { description: "A job sends them", schema: redelivery } },
      problems: ["not-found"],
      handle: async ({ params, body: { from = 0, to, since } }) => {
        const range = since === undefined ? { first: from, last: to } : { sinceMs: Date.parse(since) };
        return { status: 202, body: { job: found(await webhooks.redeliver(params.name, range), params.name) } };
      },
    }),
    operation({
      id: "pingWebhook",
      method: "POST",
      path: "/webhooks/{name}/ping",
      tag: "webhooks",
      summary: "Sends an event that tells of nothing, once, and tells what came of it",
      params: { name },
      answers: { 200: { description: "Whether it was taken", schema: ping } },
      problems: ["not-found"],
      handle: async ({ params, signal }) => {
        const id = randomUUID();
        const begunMs = performance.now();
        const { error } = found(await webhooks.ping(params.name, id, signal), params.name);
        const ms = Math.round(performance.now() - begunMs);
        return {
          status: 200,
          body: { id, delivered: error === undefined, ms, ...(error === undefined ? {} : { error }) },
        };
      },
    }),
  ];
}

function answerOf({ config, cursor, pending }: WebhookState): object {
  const { name: called, url, format, actions, repositories, secret } = config;
  const { eventId: at, deliveredAtMs, failingSinceMs, failures, retryAtMs, error } = cursor;
  return {
    name: called,
    url: withoutQuery(url),
    format,
    actions,
    repositories,
    signed: secret !== undefined,
    cursor: at,
    pending,
    failures,
    ...(deliveredAtMs === undefined ? {} : { deliveredAt: isoTime(deliveredAtMs) }),
    ...(failingSinceMs === undefined ? {} : { failingSince: isoTime(failingSinceMs) }),
    ...(retryAtMs === undefined ? {} : { retryAt: isoTime(retryAtMs) }),
    ...(error === undefined ? {} : { error }),
  };
}

/** Some receivers have their token there. */
function withoutQuery(url: string): string {
  return url.replace(/\?.*$/s, "?…");
}

function failureAnswer({ atMs, redeliveredAtMs, ...rest }: Failure): object {
  return {
    ...rest,
    at: isoTime(atMs),
    ...(redeliveredAtMs === undefined ? {} : { redeliveredAt: isoTime(redeliveredAtMs) }),
  };
}
