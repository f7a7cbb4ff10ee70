import assert from "node:assert/strict";
import { test } from "node:test";
import { request } from "undici";
import { makeImage } from "../kit/images.ts";
import { until } from "../kit/registry.ts";
import { isSigned, ok, startReceiver, type Receiver } from "../events/receiver.ts";
import { startDaemon, type Daemon, type Tree } from "./daemon.ts";
import { makeStorage, PRIVATE } from "./stage.ts";

const SECRET = "s3cret";
const REPOSITORIES = ["team/one", "team/two", "team/three"];
const IMAGE = makeImage({ layers: [1000] });

interface Told {
  id: string;
  target: { repository: string; tag: string };
}

function config(receiver: Receiver): Tree {
  return { ...PRIVATE, webhooks: [{ name: "ci", url: receiver.url, secret: SECRET }] };
}

async function send(daemon: Daemon, method: "POST" | "PUT", path: string, body: Buffer, type = ""): Promise<void> {
  const answer = await request(`${daemon.url}${path}`, {
    method,
    body,
    headers: type === "" ? {} : { "content-type": type },
  });
  assert.equal(answer.statusCode, 201, await answer.body.text());
}

async function pushBlobs(daemon: Daemon): Promise<void> {
  for (const repository of REPOSITORIES) {
    for (const { digest, bytes } of IMAGE.blobs.values()) {
      await send(daemon, "POST", `/v2/${repository}/blobs/uploads/?digest=${digest}`, bytes);
    }
  }
}

/** Each repository's tags come one after the other, the repositories side by side. @returns what was acknowledged */
async function pushTags(daemon: Daemon, count: number, prefix: string): Promise<Map<string, string[]>> {
  const pushed = new Map<string, string[]>(REPOSITORIES.map((repository) => [repository, []]));
  await Promise.all(
    REPOSITORIES.map(async (repository) => {
      for (let index = 0; index < count; index++) {
        const tag = `${prefix}${index}`;
        await send(daemon, "PUT", `/v2/${repository}/manifests/${tag}`, IMAGE.manifest, IMAGE.mediaType);
        pushed.get(repository)?.push(tag);
      }
    }),
  );
  return pushed;
}

/** Every event once, in the order in which the requests came, whether or not they were answered. */
function toldBy(receiver: Receiver): Told[] {
  const events = receiver.received.flatMap(({ body }) => (JSON.parse(body) as { events: Told[] }).events);
  return [...new Map(events.map((event) => [event.id, event])).values()];
}

function assertOrder(receiver: Receiver, pushed: Map<string, string[]>): void {
  for (const one of receiver.received) assert.ok(isSigned(one, SECRET));
  for (const [repository, tags] of pushed) {
    const told = toldBy(receiver).filter(({ target }) => target.repository === repository);
    assert.deepEqual(
      told.map(({ target }) => target.tag),
      tags,
      repository,
    );
  }
}

test("killed between pushes and their delivery: the next daemon delivers them, signed, in each repository's order", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  await using receiver = await startReceiver();
  let pushed: Map<string, string[]>;
  // Nobody listens there as long as the first daemon lives.
  await receiver.stop();
  {
    await using daemon = await startDaemon({ root, config: config(receiver) });
    await pushBlobs(daemon);
    pushed = await pushTags(daemon, 40, "t");
    await daemon.kill();
  }
  assert.equal(receiver.received.length, 0);
  await receiver.start();
  await using daemon = await startDaemon({ root, config: config(receiver) });
  await receiver.took(40 * REPOSITORIES.length);
  assertOrder(receiver, pushed);
  assert.equal(receiver.taken.length, 40 * REPOSITORIES.length, "what was never sent is sent once");
  await daemon.stop();
});

test("killed while an endpoint has a delivery in hand: it is sent again, with the same ids, before anything newer", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  // Takes what comes, and does not live to say so.
  await using receiver = await startReceiver(() => undefined);
  let pushed: Map<string, string[]>;
  {
    await using daemon = await startDaemon({ root, config: config(receiver) });
    await pushBlobs(daemon);
    pushed = await pushTags(daemon, 10, "a");
    await receiver.arrived(1);
    await daemon.kill();
  }
  const begun = toldBy(receiver).map(({ id }) => id);
  assert.ok(begun.length > 0);
  const requests = receiver.received.length;
  receiver.answer(ok);
  await using daemon = await startDaemon({ root, config: config(receiver) });
  for (const [repository, tags] of await pushTags(daemon, 5, "b")) pushed.get(repository)?.push(...tags);
  await until(() => receiver.taken.length >= 15 * REPOSITORIES.length, "all are taken");
  const again = JSON.parse(receiver.received[requests]?.body ?? "") as { events: Told[] };
  assert.deepEqual(
    again.events.slice(0, begun.length).map(({ id }) => id),
    begun,
  );
  assertOrder(receiver, pushed);
  await daemon.stop();
});

test("killed again and again: nothing is lost, and each repository's order stays", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  await using receiver = await startReceiver((response) => void setTimeout(() => response.writeHead(204).end(), 50));
  const pushed = new Map<string, string[]>(REPOSITORIES.map((repository) => [repository, []]));
  for (let round = 0; round < 4; round++) {
    await using daemon = await startDaemon({ root, config: config(receiver) });
    if (round === 0) await pushBlobs(daemon);
    for (const [repository, tags] of await pushTags(daemon, 15, `r${round}-`)) pushed.get(repository)?.push(...tags);
    await daemon.kill();
  }
  await using daemon = await startDaemon({ root, config: config(receiver) });
  await until(() => toldBy(receiver).length === 60 * REPOSITORIES.length, "all are told");
  assertOrder(receiver, pushed);
  await daemon.stop();
});
