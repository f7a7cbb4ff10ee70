import assert from "node:assert/strict";
import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { pushImage, select } from "../kit/hosted.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { MINUTE, MovingClock } from "../registry/clients.ts";

const SECRET = "tell-me-4711";
const image = makeImage({ layers: [20_000] });
const JSON_TYPE = { "content-type": "application/json" };

async function isThere(registry: TestRegistry, repository: string, tag: string, { digest }: Image): Promise<boolean> {
  const { status, headers } = await registry.send("HEAD", `/v2/${repository}/manifests/${tag}`);
  return status === 200 && headers["docker-content-digest"] === digest;
}

/** Its own configuration with a source that tells of pushes. */
function fed(copy: TestRegistry, source: TestRegistry, further: object = {}) {
  return parseConfig({
    server: { listen: "127.0.0.1:0" },
    storage: { root: copy.root, minFree: 0 },
    replication: {
      registries: { origin: { url: source.url, notifications: { secret: SECRET } } },
      rules: [
        {
          name: "in",
          from: { registry: "origin", repositories: ["team/**"] },
          to: [{ registry: "self" }],
          tags: { match: ["v*"] },
          on: { push: true },
          ...further,
        },
      ],
    },
  });
}

for (const format of ["distribution", "cloudevents"]) {
  test(`another registry's webhook starts the copy, and its secret is in no log (${format})`, async () => {
    await using copy = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
    const url = `${copy.url}/api/v1/replication/registries/origin/notifications?secret=${SECRET}`;
    await using source = await startRegistry({
      config: { webhooks: [{ name: "copy", url, format, allowPrivate: true }] },
    });
    copy.app.reload(fed(copy, source));
    await pushImage(source, "team/app", image, "v1");
    await pushImage(source, "team/app", image, "other");
    await until(() => isThere(copy, "team/app", "v1", image), "the copy is there");
    assert.equal(await isThere(copy, "team/app", "other", image), false);
    const wrong = await copy.send("POST", url.slice(copy.url.length).replace(SECRET, "guess-4711"), JSON_TYPE, "{}");
    assert.equal(wrong.status, 401);
    assert.doesNotMatch(JSON.stringify([copy.log, source.log]), /-4711/);
    const { bytes } = await copy.get("/api/v1/config");
    assert.doesNotMatch(bytes.toString(), /-4711/);
  });
}

test("what is no registry's name is not found, and not repeated in the record of events", async () => {
  await using copy = await startRegistry();
  const { hostname, port } = new URL(copy.url);
  const post = async (name: string): Promise<string> => {
    await using socket = connect({ host: hostname, port: Number(port) });
    socket.write(
      `POST /api/v1/replication/registries/${name}/notifications HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`,
      "latin1",
    );
    return await text(socket);
  };
  assert.match(await post("unknown"), /^HTTP\/1.1 401 /);
  assert.match(await post("\u009b31mred"), /^HTTP\/1.1 (?:400|403|404) /);
  assert.match(await post("other"), /^HTTP\/1.1 401 /);
  const noted = async (): Promise<string[]> => {
    const { bytes } = await copy.get("/api/v1/events?action=login");
    return (JSON.parse(bytes.toString()) as { items: { detail: string }[] }).items.map(({ detail }) => detail);
  };
  await until(async () => (await noted()).length === 2, "the attempts are recorded");
  const told = "a wrong secret in a notification of the registry";
  assert.deepEqual(await noted(), [`${told} other`, `${told} unknown`]);
});

test("a rule that the API makes copies what is pushed from then on, without a restart", async () => {
  await using target = await startRegistry();
  await using source = await startRegistry({ config: { replication: { registries: { dr: { url: target.url } } } } });
  const given = { from: { registry: "self", repositories: ["team/*"] }, to: [{ registry: "dr" }], on: { push: true } };
  const put = await source.send("PUT", "/api/v1/replication/rules/out", JSON_TYPE, JSON.stringify(given));
  assert.ok(put.status === 200 || put.status === 201, put.bytes.toString());
  await pushImage(source, "team/app", image, "v1");
  await until(() => isThere(target, "team/app", "v1", image), "the copy is there");
});

test("a rule runs by its cron, and what the window shuts out waits for it", async () => {
  await using target = await startRegistry();
  const clock = new MovingClock();
  clock.offsetMs = Date.parse("2030-01-01T11:30:00Z") - Date.now();
  const rule = (name: string, on: object) => ({
    name,
    from: { registry: "self", repositories: [`team/${name}`] },
    to: [{ registry: "dr" }],
    on: { cron: "0 * * * *", ...on },
  });
  const replication = {
    registries: { dr: { url: target.url } },
    rules: [rule("open", {}), rule("shut", { cron: "0 12 * * *", window: "20:00-06:00" })],
  };
  await using source = await startRegistry({ clock, config: { replication } });
  await pushImage(source, "team/open", image, "v1");
  await pushImage(source, "team/shut", image, "v1");
  const places = async (): Promise<object[]> =>
    select(source, "SELECT name FROM schedules WHERE name LIKE 'replicate %'");
  await until(async () => (await places()).length === 2, "both have their place in the schedule");
  clock.offsetMs += 91 * MINUTE;
  // Whoever changes rules has it looked at.
  const other = { ...rule("other", { cron: "never" }), name: undefined };
  await source.send("PUT", "/api/v1/replication/rules/other", JSON_TYPE, JSON.stringify(other));
  await until(() => isThere(target, "team/open", "v1", image), "the hour has come");
  assert.equal(await isThere(target, "team/shut", "v1", image), false);
  const { bytes } = await source.get("/api/v1/replication/rules");
  const { items } = JSON.parse(bytes.toString()) as { items: { name: string; nextAt?: string }[] };
  assert.deepEqual(
    items.flatMap(({ name, nextAt }) => (nextAt === undefined ? [] : [[name, nextAt]])),
    [
      ["open", "2030-01-01T14:00:00.000Z"],
      ["shut", "2030-01-01T20:00:00.000Z"],
    ],
  );
});
