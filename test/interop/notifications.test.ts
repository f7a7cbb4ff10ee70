import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { startRegistry } from "../kit/registry.ts";
import { makeFolder, startDaemon } from "./machine.ts";
import { makeSamples } from "./samples.ts";
import { copyIn } from "./skopeo.ts";

test("what is pushed to a docker-registry is here soon, by its own notifications, whatever else they tell of", async () => {
  await using folder = await makeFolder();
  await using stack = new AsyncDisposableStack();
  const copy = stack.use(await startRegistry({ config: { hosted: { namespaces: ["team"] } } }));
  const endpoint = {
    name: "copy",
    url: `${copy.url}/api/v1/replication/registries/stock/notifications`,
    headers: { Authorization: ["Bearer tell-me"] },
    timeout: "2s",
    threshold: 5,
    backoff: "100ms",
  };
  const config = join(folder.path, "stock.yaml");
  await writeFile(
    config,
    JSON.stringify({
      version: "0.1",
      storage: { filesystem: { rootdirectory: join(folder.path, "stock") } },
      http: { addr: "127.0.0.1:0" },
      notifications: { endpoints: [endpoint] },
    }),
  );
  const { daemon, match } = await startDaemon("docker-registry", ["serve", config], /listening on (127[.0-9]+:\d+)/);
  stack.use(daemon);
  const stock = match[1] ?? "";
  const rule = {
    name: "in",
    from: { registry: "stock", repositories: ["team/*"] },
    to: [{ registry: "self" }],
    on: { push: true },
  };
  copy.app.reload(
    parseConfig({
      storage: { root: copy.root, minFree: 0 },
      replication: {
        registries: { stock: { url: `http://${stock}`, notifications: { secret: "tell-me" } } },
        rules: [rule],
      },
    }),
  );
  const { single, multi } = await makeSamples(folder.path);
  for (const [tag, { source, digest }] of Object.entries({ v1: single, v2: multi })) {
    await copyIn(source, `${stock}/team/app:${tag}`);
    await copy.until(async () => {
      const { headers } = await copy.send("HEAD", `/v2/team/app/manifests/${tag}`);
      return headers["docker-content-digest"] === digest;
    }, `${tag} is here`);
  }
  const refused = copy.log.filter(({ path, code }) => String(path).endsWith("/notifications") && code !== 202);
  assert.deepEqual(refused, []);
});
