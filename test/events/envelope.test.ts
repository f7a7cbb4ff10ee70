import assert from "node:assert/strict";
import { test } from "node:test";
import { HTTP, type CloudEvent } from "cloudevents";
import {
  deliveryId,
  eventId,
  MAX_BATCH_BYTES,
  MAX_BATCH_EVENTS,
  packBatch,
  pingBatch,
  type Origin,
} from "../../src/events/envelope.ts";
import type { ImageEvent } from "../../src/events/event.ts";
import type { Digest } from "../../src/oci/digest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";

const DIGEST = `sha256:${"ab".repeat(32)}` as Digest;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const ORIGIN: Origin = { publicUrl: "https://registry.example.com", hostname: "node-7", instanceId: "run-1" };
const ELSEWHERE: Origin = { publicUrl: undefined, hostname: "node 7", instanceId: "run-2" };

function event(over: Partial<ImageEvent> = {}): ImageEvent {
  return {
    id: 7,
    atMs: Date.UTC(2026, 4, 1, 12, 30, 0, 5),
    action: "push",
    outcome: "done",
    repository: "team/app" as RepositoryName,
    subject: undefined,
    tag: "1.0" as Tag,
    digest: DIGEST,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    sizeBytes: 708,
    actor: "ann",
    address: "192.0.2.7",
    agent: "docker/29",
    requestId: "req-1",
    detail: undefined,
    ...over,
  };
}

test("the envelope is the one that distribution documents, field by field", () => {
  const { contentType, body } = packBatch("distribution", [event()], ORIGIN);
  assert.equal(contentType, "application/vnd.docker.distribution.events.v2+json");
  const { id, ...told } = (JSON.parse(body) as { events: [Record<string, unknown>] }).events[0];
  assert.match(String(id), UUID);
  assert.deepEqual(told, {
    timestamp: "2026-05-01T12:30:00.005Z",
    action: "push",
    target: {
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      size: 708,
      digest: DIGEST,
      length: 708,
      repository: "team/app",
      url: `https://registry.example.com/v2/team/app/manifests/${DIGEST}`,
      tag: "1.0",
    },
    request: { id: "req-1", addr: "192.0.2.7", host: "registry.example.com", method: "PUT", useragent: "docker/29" },
    actor: { name: "ann" },
    source: { addr: "registry.example.com", instanceID: "run-1" },
  });
});

test("what nobody knows is left out: the actor, the request of the daemon's own work, the address that nobody configured", () => {
  const own = event({
    action: "delete",
    actor: "retention",
    address: undefined,
    agent: undefined,
    requestId: undefined,
  });
  const [told] = (JSON.parse(packBatch("distribution", [own], ELSEWHERE).body) as { events: Record<string, unknown>[] })
    .events;
  assert.deepEqual(told?.["request"], {});
  assert.deepEqual(told?.["actor"], { name: "retention" });
  assert.deepEqual(told?.["source"], { addr: "node 7", instanceID: "run-2" });
  assert.equal((told?.["target"] as { url?: string } | undefined)?.url, undefined);
});

test("a mount names the repository that the blob came from", () => {
  const mount = event({ action: "mount", tag: undefined, mediaType: undefined, detail: "team/base" });
  const [told] = (JSON.parse(packBatch("distribution", [mount], ORIGIN).body) as { events: { target: object }[] })
    .events;
  assert.deepEqual(told?.target, {
    mediaType: "application/octet-stream",
    size: 708,
    digest: DIGEST,
    length: 708,
    repository: "team/app",
    fromRepository: "team/base",
    url: `https://registry.example.com/v2/team/app/blobs/${DIGEST}`,
  });
});

test("CloudEvents are what their SDK takes for a batch of them", () => {
  const events = [
    event(),
    event({ id: 8, tag: undefined, action: "delete" }),
    event({ id: 9, tag: undefined, digest: undefined, requestId: undefined }),
  ];
  for (const origin of [ORIGIN, ELSEWHERE]) {
    const { contentType, body } = packBatch("cloudevents", events, origin);
    const parsed = HTTP.toEvent({ headers: { "content-type": contentType }, body }) as CloudEvent<unknown>[];
    assert.ok(parsed.every((one) => one.validate()));
    assert.deepEqual(
      parsed.map(({ type, subject, time }) => ({ type, subject, time })),
      [
        { type: "io.entrepot.image.push", subject: "team/app:1.0", time: "2026-05-01T12:30:00.005Z" },
        { type: "io.entrepot.image.delete", subject: `team/app@${DIGEST}`, time: "2026-05-01T12:30:00.005Z" },
        { type: "io.entrepot.image.push", subject: "team/app", time: "2026-05-01T12:30:00.005Z" },
      ],
    );
    assert.deepEqual(
      parsed.map(({ id }) => id),
      events.map(eventId),
    );
    assert.deepEqual(
      new Set(parsed.map(({ source }) => source)),
      new Set([origin.publicUrl ?? "urn:entrepot:node%207"]),
    );
  }
  const { contentType, body } = pingBatch("cloudevents", "0d6a2f5e-0000-4000-8000-000000000000", 0, ELSEWHERE);
  const [ping] = HTTP.toEvent({ headers: { "content-type": contentType }, body }) as CloudEvent<unknown>[];
  assert.ok(ping);
  assert.ok(ping.validate());
  assert.equal(ping.type, "io.entrepot.ping");
});

test("an event has one id everywhere; a delivery has one for its events and its endpoint", () => {
  const [one, other] = [event(), event({ id: 8 })];
  assert.equal(eventId(one), eventId({ ...one }));
  assert.notEqual(eventId(one), eventId(other));
  assert.notEqual(eventId(one), eventId({ ...one, requestId: "req-2" }), "the same row in another storage");
  assert.match(deliveryId("ci", [one, other]), UUID);
  assert.equal(deliveryId("ci", [one, other]), deliveryId("ci", [one, other]));
  const ids = [
    ["ci", [one, other]],
    ["ci", [one]],
    ["audit", [one, other]],
  ] as const;
  assert.equal(new Set(ids.map(([endpoint, events]) => deliveryId(endpoint, events))).size, 3);
});

test("a batch ends at a hundred events or a quarter of a MiB, and holds at least one", () => {
  const many = Array.from({ length: 250 }, (_, index) => event({ id: index + 1 }));
  for (const format of ["distribution", "cloudevents"] as const) {
    assert.equal(packBatch(format, many, ORIGIN).events.length, MAX_BATCH_EVENTS);
    const wide = many.map((one) => ({ ...one, detail: "x", agent: "ü".repeat(4_000) }));
    const { body, events } = packBatch(format, wide, ORIGIN);
    assert.ok(events.length > 20 && events.length < 40, String(events.length));
    assert.ok(Buffer.byteLength(body) <= MAX_BATCH_BYTES);
    const huge = packBatch(format, [event({ agent: "x".repeat(MAX_BATCH_BYTES) }), event()], ORIGIN);
    assert.equal(huge.events.length, 1);
    assert.deepEqual(packBatch(format, many, ORIGIN), packBatch(format, [...many], ORIGIN));
  }
});
