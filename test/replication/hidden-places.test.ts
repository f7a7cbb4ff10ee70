import assert from "node:assert/strict";
import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { hash } from "bcryptjs";
import { parseConfig } from "../../src/config/load.ts";
import { ConfigError } from "../../src/config/faults.ts";
import { Api } from "../kit/api.ts";
import { pushImage } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { basic, operatorOf, tokenFor } from "../kit/people.ts";
import { startRegistry, until } from "../kit/registry.ts";

const image = makeImage({ layers: [20_000], seed: "for copies alone" });
const PLACE = "replication.other/team/app";

test("what copies bring into the cache is for administrators alone: others neither see, pull, mount, push nor delete it", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-"));
  const path = join(folder.path, "htpasswd");
  await writeFile(path, `fred:${await hash("a password of fred", 4)}\n`);
  await using source = await startRegistry();
  await pushImage(source, "team/app", image, "1");
  await using target = await startRegistry();
  await using here = await startRegistry({
    config: {
      access: { open: false, htpasswd: { path, role: "owner" } },
      hosted: { namespaces: ["team"] },
      replication: {
        registries: { other: { url: source.url }, dr: { url: target.url } },
        rules: [{ name: "r", from: { registry: "other", repositories: ["team/app"] }, to: [{ registry: "dr" }] }],
      },
    },
  });
  const api = await Api.of(here);
  const operator = await operatorOf(here);
  const { body } = await api.expect(202, "POST", "/replication/rules/r/run", undefined, operator);
  await until(async () => {
    const told = await api.expect(200, "GET", `/replication/runs/${String(body["run"])}`, undefined, operator);
    return told.body["state"] === "done";
  }, "the run has ended");
  const named = encodeURIComponent(PLACE);
  const seen = async (who: Record<string, string>, of: string): Promise<string> =>
    (await here.get(of, who)).bytes.toString();
  assert.match(await seen(operator, "/api/v1/repositories"), /replication\.other/);
  await api.expect(200, "GET", `/repositories/${named}`, undefined, operator);

  const fred = basic("fred", "a password of fred");
  const limits = [{ repositories: ["**"], verbs: ["pull", "push", "delete"] }];
  const robot = { name: "bot", description: "", expires: "never", limits };
  const { secret } = (await api.expect(201, "POST", "/robots", robot, operator)).body;
  const bot = basic("bot", String(secret));
  const [layer] = image.layers;
  assert.ok(layer);
  for (const who of [fred, bot]) {
    for (const list of ["/v2/_catalog", "/api/v1/repositories", "/api/v1/repositories?q=app", "/v1/search?q=app"]) {
      assert.doesNotMatch(await seen(who, list), /replication/, list);
    }
    for (const part of ["", "/tags", "/tags/1", `/manifests/${image.digest}`]) {
      const { status } = await here.get(`/api/v1/repositories/${named}${part}`, who);
      assert.equal(status, 403, part);
    }
    await api.expect(403, "DELETE", `/repositories/${named}`, undefined, who);
    const pulling = await tokenFor(here, who, `repository:${PLACE}:pull,push,delete`, "repository:team/app:pull,push");
    for (const credentials of [who, pulling]) {
      for (const [method, at] of [
        ["GET", `/v2/${PLACE}/manifests/${image.digest}`],
        ["GET", `/v2/${PLACE}/blobs/${layer.digest}`],
        ["GET", `/v2/${PLACE}/tags/list`],
        ["GET", `/v2/team/app/blobs/${layer.digest}?ns=replication.other`],
        ["GET", `/v2/other/team/app/blobs/${layer.digest}`],
        ["POST", `/v2/${PLACE}/blobs/uploads/`],
        ["DELETE", `/v2/${PLACE}/manifests/${image.digest}`],
      ] as const) {
        const { status } = await here.send(method, at, credentials);
        assert.ok([401, 403, 404].includes(status), `${method} ${at}: ${status}`);
      }
      for (const from of [`&from=${PLACE}`, ""]) {
        const { status } = await here.send(
          "POST",
          `/v2/team/app/blobs/uploads/?mount=${layer.digest}${from}`,
          credentials,
        );
        assert.equal(status, 202, `an upload, no mount: ${from}`);
      }
    }
  }
});

test("an upstream is not called as a place of copies", () => {
  const upstreams = { "replication.other": { url: "https://other.example" } };
  assert.throws(() => parseConfig({ upstreams }), ConfigError);
});
