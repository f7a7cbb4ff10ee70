import assert from "node:assert/strict";
import { test } from "node:test";
import { request } from "undici";
import { select } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { startDaemon, type Daemon, type Tree } from "./daemon.ts";
import { makeStorage, PRIVATE } from "./stage.ts";

const IMAGE = makeImage({ layers: [1000] });

function config(target: TestRegistry): Tree {
  const rule = {
    name: "out",
    from: { registry: "self", repositories: ["team/**"] },
    to: [{ registry: "dr" }],
    on: { push: true },
  };
  return { ...PRIVATE, replication: { registries: { dr: { url: target.url } }, rules: [rule] } };
}

async function send(daemon: Daemon, method: "POST" | "PUT", path: string, body: Buffer, type = ""): Promise<void> {
  const headers = type === "" ? {} : { "content-type": type };
  const answer = await request(`${daemon.url}${path}`, { method, body, headers });
  assert.equal(answer.statusCode, 201, await answer.body.text());
}

test("killed again and again while tags are pushed: each that was acknowledged is copied, by one task", async () => {
  await using storage = await makeStorage();
  const { root } = storage;
  await using target = await startRegistry();
  const pushed: string[] = [];
  for (let round = 0; round < 4; round++) {
    await using daemon = await startDaemon({ root, config: config(target) });
    if (round === 0) {
      for (const { digest, bytes } of IMAGE.blobs.values()) {
        await send(daemon, "POST", `/v2/team/app/blobs/uploads/?digest=${digest}`, bytes);
      }
    }
    for (let index = 0; index < 10; index++) {
      const tag = `r${round}-${index}`;
      await send(daemon, "PUT", `/v2/team/app/manifests/${tag}`, IMAGE.manifest, IMAGE.mediaType);
      pushed.push(tag);
    }
    await daemon.kill();
  }
  await using daemon = await startDaemon({ root, config: config(target) });
  const copied = async (): Promise<string[]> => {
    const { bytes } = await target.get("/v2/team/app/tags/list");
    return (JSON.parse(bytes.toString()) as { tags?: string[] }).tags ?? [];
  };
  await until(async () => (await copied()).length === pushed.length, "all of them are copied");
  assert.deepEqual((await copied()).toSorted(), pushed.toSorted());
  const tasks = select(storage, "SELECT subject, COUNT(*) AS tasks FROM jobs WHERE kind = 'copy:dr' GROUP BY subject");
  assert.deepEqual(
    tasks,
    pushed.toSorted().map((tag) => ({ subject: `dr team/app:${tag}`, tasks: 1 })),
  );
  await daemon.stop();
});
