import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import type { ImageAction, ImageEvent } from "../../src/events/event.ts";
import { packBatch, pingBatch } from "../../src/events/envelope.ts";
import { digestOf } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { NotificationUnread, readNotification } from "../../src/replication/notifications.ts";

const DIGEST = digestOf(Buffer.from("an image"));

function read(body: unknown, headers: Record<string, string> = {}): string[] {
  return readNotification(body, headers).map(
    ({ repository, tag, digest }) => `${repository}:${tag ?? ""}${digest === undefined ? "" : `@${digest}`}`,
  );
}

test("Docker Hub's webhook names a repository and a tag", () => {
  assert.deepEqual(
    read({
      callback_url: "https://registry.hub.docker.com/u/team/app/hook/1/",
      push_data: { pushed_at: 1417566161, pusher: "somebody", tag: "latest" },
      repository: { name: "app", namespace: "team", repo_name: "team/app", is_official: false, star_count: 0 },
    }),
    ["team/app:latest"],
  );
});

const harborData = {
  resources: [
    { digest: DIGEST, tag: "v1", resource_url: "harbor.example/library/app:v1" },
    { digest: DIGEST, tag: DIGEST, resource_url: `harbor.example/library/app@${DIGEST}` },
  ],
  repository: {
    date_created: 1582634337,
    name: "app",
    namespace: "library",
    repo_full_name: "library/app",
    repo_type: "public",
  },
};
const harborPushes = [`library/app:v1@${DIGEST}`, `library/app:@${DIGEST}`];

test("Harbor's pushes are read in both of its formats, and its other events are none", () => {
  const plain = (type: string) => ({ type, occur_at: 1680501893, operator: "ci", event_data: harborData });
  assert.deepEqual(read(plain("PUSH_ARTIFACT")), harborPushes);
  assert.deepEqual(read(plain("PULL_ARTIFACT")), []);
  assert.deepEqual(read({ ...plain("REPLICATION"), event_data: { replication: {} } }), []);
  const cloud = (type: string) => ({
    specversion: "1.0",
    id: "1",
    source: "/projects/1/webhook/policies/15",
    type,
    data: harborData,
    operator: "ci",
  });
  assert.deepEqual(read(cloud("harbor.artifact.pushed")), harborPushes);
  assert.deepEqual(read(cloud("harbor.artifact.deleted")), []);
});

test("Quay's push names tags, as a list or as it once did; its other events are none", () => {
  const quay = {
    name: "app",
    repository: "team/app",
    namespace: "team",
    docker_url: "quay.io/team/app",
    homepage: "https://quay.io/",
  };
  assert.deepEqual(read({ ...quay, updated_tags: ["latest", "1.2"] }), ["team/app:latest", "team/app:1.2"]);
  assert.deepEqual(read({ ...quay, updated_tags: { latest: "b750fe79" } }), ["team/app:latest"]);
  assert.deepEqual(read({ ...quay, build_id: "1", docker_tags: ["latest"] }), []);
});

test("of docker-registry's envelope pushes of manifests count: no layers, no pulls; of one tag the last", () => {
  const event = (action: string, target: object) => ({
    id: "1",
    action,
    target: { repository: "team/app", ...target },
    request: {},
  });
  const other = digestOf(Buffer.from("another"));
  assert.deepEqual(
    read({
      events: [
        event("push", { mediaType: "application/octet-stream", digest: DIGEST }),
        event("push", { mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", digest: DIGEST }),
        event("push", { mediaType: MEDIA_TYPES.ociImage, digest: other }),
        event("push", { mediaType: MEDIA_TYPES.ociIndex, digest: other, tag: "1.0" }),
        event("pull", { mediaType: MEDIA_TYPES.ociIndex, digest: DIGEST, tag: "1.1" }),
        event("push", { mediaType: MEDIA_TYPES.ociIndex, digest: DIGEST, tag: "1.0" }),
      ],
    }),
    [`team/app:@${other}`, `team/app:1.0@${DIGEST}`],
  );
  // As Azure's registry sends them.
  assert.deepEqual(read(event("push", { mediaType: MEDIA_TYPES.ociImage, digest: DIGEST, tag: "1.0" })), [
    `team/app:1.0@${DIGEST}`,
  ]);
});

test("what entrepot's own webhooks send is read, in either format, a ping too", () => {
  const event = (id: number, action: ImageAction, tag?: string): ImageEvent => ({
    id,
    atMs: 1,
    action,
    outcome: "done",
    repository: "team/app" as RepositoryName,
    tag: tag as Tag | undefined,
    digest: DIGEST,
    mediaType: MEDIA_TYPES.ociImage,
    sizeBytes: 7,
    actor: "ci",
    address: "",
    agent: undefined,
    subject: undefined,
    requestId: "r-1",
    detail: undefined,
  });
  const events = [event(1, "push", "1.0"), event(2, "delete", "0.9"), event(3, "mount"), event(4, "push")];
  const origin = { publicUrl: "https://one.example", hostname: "one", instanceId: "1" };
  for (const format of ["distribution", "cloudevents"] as const) {
    const { body } = packBatch(format, events, origin);
    assert.deepEqual(read(JSON.parse(body)), [`team/app:1.0@${DIGEST}`, `team/app:@${DIGEST}`]);
    assert.deepEqual(read(JSON.parse(pingBatch(format, "1", 1, origin).body)), []);
  }
});

test("a CloudEvent may have its attributes in the headers", () => {
  const headers = { "ce-specversion": "1.0", "ce-type": "harbor.artifact.pushed", "ce-id": "1" };
  assert.deepEqual(read(harborData, headers), harborPushes);
  assert.deepEqual(
    read({ action: "push", repository: "team/app", tag: "1" }, { ...headers, "ce-type": "example.pushed" }),
    ["team/app:1"],
  );
});

test("what cannot be read is told, with what can", () => {
  const unread = (body: unknown, message: RegExp): void =>
    assert.throws(
      () => readNotification(body, {}),
      (error) => error instanceof NotificationUnread && message.test(error.message),
    );
  for (const body of [null, 7, "push", {}, { events: {} }, [[]]]) unread(body, /Docker Hub, Harbor, Quay/);
  unread(
    { specversion: "1.0", type: "dev.cdevents.artifact.published", data: {} },
    /dev\.cdevents\.artifact\.published are not known/,
  );
  unread({ type: "PUSH_ARTIFACT", occur_at: 1, event_data: {} }, /repo_full_name/);
  unread({ events: [{ action: "push", target: { tag: "1" } }] }, /no target\.repository/);
  unread({ events: [{ action: "push", target: { repository: "UPPER", tag: "1" } }] }, /not a repository's name/);
  unread({ events: [{ action: "push", target: { repository: "a", tag: "-" } }] }, /a tag that is none/);
  unread({ events: [{ action: "push", target: { repository: "a", digest: "sha256:1" } }] }, /a digest that is none/);
});

test("whatever JSON comes, it is read or refused as unread", () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.boolean(), (body, inHeaders) => {
      try {
        readNotification(body, inHeaders ? { "ce-specversion": "1.0", "ce-type": "x" } : {});
      } catch (error) {
        assert.ok(error instanceof NotificationUnread);
      }
    }),
  );
});

test("a notification tells of a thousand events at most, however it is written", () => {
  const event = (index: number) => ({ action: "push", target: { repository: "team/app", tag: `v${index}` } });
  const events = (count: number) => Array.from({ length: count }, (_, index) => event(index));
  assert.equal(read({ events: events(1000) }).length, 1000);
  assert.equal(read(events(1000)).length, 1000);
  const quay = {
    repository: "a",
    docker_url: "b",
    updated_tags: Array.from({ length: 1001 }, (_, index) => `v${index}`),
  };
  for (const many of [{ events: events(1001) }, events(1001), Array.from({ length: 100_000 }, () => ({})), quay]) {
    assert.throws(() => read(many), /send 1000 at once, at most/);
  }
});
