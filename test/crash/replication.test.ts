import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { request } from "undici";
import { makeImage, type Image } from "../kit/images.ts";
import { has } from "../kit/hosted.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { startBetween, type Between } from "../replication/between.ts";
import { startDaemon, type Daemon, type Tree } from "./daemon.ts";
import { makeStorage } from "./stage.ts";

const COPY = "copy/team/app";
const MIB = 1024 * 1024;

function config(between: Between): Tree {
  return {
    replication: {
      registries: { dr: { url: between.url } },
      rules: [
        {
          name: "out",
          from: { registry: "self", repositories: ["team/app"] },
          to: [{ registry: "dr", repository: "copy/{{path}}" }],
          on: { push: true },
        },
      ],
    },
  };
}

async function push(daemon: Daemon, image: Image, tag: string): Promise<void> {
  const send = async (method: "POST" | "PUT", path: string, body: Buffer, type?: string): Promise<void> => {
    const headers = type === undefined ? {} : { "content-type": type };
    const answer = await request(`${daemon.url}/v2/team/app/${path}`, { method, body, headers });
    assert.equal(answer.statusCode, 201, await answer.body.text());
  };
  for (const { digest, bytes } of image.blobs.values()) await send("POST", `blobs/uploads/?digest=${digest}`, bytes);
  await send("PUT", `manifests/${tag}`, image.manifest, image.mediaType);
}

async function isCopied(target: TestRegistry, image: Image, tag: string): Promise<boolean> {
  const { status, headers } = await target.send("HEAD", `/v2/${COPY}/manifests/${tag}`);
  if (status !== 200) return false;
  // Whenever the tag is there, all that it leads to is.
  for (const blob of image.blobs.values()) assert.ok(await has(target, COPY, blob), `${blob.digest} is there`);
  return headers["docker-content-digest"] === image.digest;
}

test("killed at any request of a copy, the daemon goes on with it, and sends no blob again that had arrived", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using storage = await makeStorage();
  const steps = await (async () => {
    await using daemon = await startDaemon({ root: storage.root, config: config(between) });
    const image = makeImage({ layers: [40_000, 30_000], seed: "first" });
    await push(daemon, image, "first");
    await until(() => isCopied(target, image, "first"), "the first copy is there");
    return between.passed.length;
  })();
  assert.ok(steps > 6, `a copy takes ${steps} requests`);
  for (let step = 1; step <= steps; step++) {
    const image = makeImage({ layers: [40_000, 30_000], seed: step });
    const before = between.passed.length;
    let killed: Promise<void> | undefined;
    {
      await using daemon = await startDaemon({ root: storage.root, config: config(between) });
      between.trick = () => {
        if (between.passed.length - before >= step) killed ??= daemon.kill();
        return undefined;
      };
      await push(daemon, image, `step-${step}`);
      await until(() => killed !== undefined, `request ${step} comes`);
      await killed;
    }
    between.trick = () => undefined;
    const arrived: string[] = [];
    for (const blob of image.blobs.values()) if (await has(target, COPY, blob)) arrived.push(blob.digest);
    const restarted = between.passed.length;
    await using daemon = await startDaemon({ root: storage.root, config: config(between) });
    await until(() => isCopied(target, image, `step-${step}`), `the copy is there after a kill at request ${step}`);
    const again = between.passed.slice(restarted).filter(({ method, path }) => {
      const digest = new URLSearchParams(path.split("?")[1]).get("digest");
      return method === "PUT" && digest !== null && arrived.includes(digest);
    });
    assert.deepEqual(again, [], `after a kill at request ${step}`);
    await daemon.stop();
  }
});

test("killed in the middle of a large layer, the daemon goes on from where the target has it", async () => {
  await using target = await startRegistry();
  await using between = await startBetween(target.url);
  await using storage = await makeStorage();
  const image = makeImage({ layers: [randomBytes(160 * MIB)] });
  let acknowledged = 0;
  {
    await using daemon = await startDaemon({ root: storage.root, config: config(between) });
    await push(daemon, image, "large");
    // The second chunk is on its way: the first has been answered, and that was noted.
    await until(
      () => between.hits("PATCH") === 2 && (between.passed.at(-1)?.bytes ?? 0) > 8 * MIB,
      "the second chunk flows",
    );
    await daemon.kill();
    acknowledged = between.passed.findLast(({ method }) => method === "PATCH")?.bytes ?? 0;
  }
  assert.ok(acknowledged > 0);
  const before = between.uploadedBytes();
  await using daemon = await startDaemon({ root: storage.root, config: config(between) });
  await until(() => isCopied(target, image, "large"), "the copy is there");
  const sent = between.uploadedBytes() - before;
  assert.ok(
    sent <= 97 * MIB,
    `${Math.round(sent / MIB)} MiB were sent after the restart, of which the target had none`,
  );
  await daemon.stop();
});
