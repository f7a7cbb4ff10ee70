import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { readPlace } from "../../src/cli/copy-place.ts";
import { defaultConfig } from "../../src/config/load.ts";
import { send } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { place, run, type Ended, type Options } from "./processes.ts";

const TEAM = { hosted: { namespaces: ["team"] } };

async function copy(args: string[], options: Options = {}): Promise<Ended & { events: Record<string, unknown>[] }> {
  const ended = await run(["copy", ...args, "--json"], options);
  const events = ended.stdout
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  return { ...ended, events };
}

const hostOf = ({ url }: { url: string }): string => new URL(url).host;

async function tagsOf(registry: TestRegistry, repository: string): Promise<string[]> {
  const { bytes } = await send(registry, 200, "GET", `/v2/${repository}/tags/list`);
  return (JSON.parse(bytes.toString()) as { tags: string[] }).tags;
}

test("copy brings an image with its signature, tells what it did, and the second time does nothing", async () => {
  await using source = await startUpstream();
  await using target = await startRegistry({ config: TEAM });
  const image = makeImage({ layers: [50_000] });
  const index = makeIndex([[{ os: "linux", architecture: "amd64" }, image]]);
  source.add("library/app", "1", index);
  source.add(
    "library/app",
    undefined,
    makeArtifact({ subject: index, artifactType: "application/x.sig", payload: "s" }),
  );
  const args = [`${source.host}/library/app:1`, `${hostOf(target)}/team/app`];
  const dry = await run(["copy", ...args, "--dry-run"]);
  assert.equal(dry.status, 0, dry.stderr);
  assert.match(dry.stdout, /1 image to copy: 4[89][\d.]* KiB to send/);
  await send(target, 404, "GET", "/v2/team/app/manifests/1");

  const first = await run(["copy", ...args]);
  assert.equal(first.status, 0, first.stderr);
  assert.match(first.stdout, /✓ 127\.0\.0\.1:\d+\/team\/app:1: copied, .* sent/);
  assert.match(first.stdout, /1 image copied: .* \d+ requests, /);
  const { bytes } = await send(target, 200, "GET", "/v2/team/app/manifests/1");
  assert.deepEqual(bytes, index.manifest);
  const referrers = await send(target, 200, "GET", `/v2/team/app/referrers/${index.digest}`);
  assert.equal((JSON.parse(referrers.bytes.toString()) as { manifests: unknown[] }).manifests.length, 1);

  const second = await copy(args);
  assert.equal(second.events.at(-1)?.["sentBytes"], 0);
  assert.equal(second.events.at(-1)?.["unchanged"], 1);
});

test("copy --all-tags copies a repository, and a tag that fails does not keep the others", async () => {
  await using source = await startUpstream();
  await using target = await startRegistry({ config: TEAM });
  for (const tag of ["1", "2", "3"]) source.add("library/app", tag, makeImage({ layers: [1000], seed: tag }));
  const broken = makeImage({ layers: [1000], seed: "broken" });
  source.add("library/app", "broken", broken);
  source.remove("library/app", broken.layers[0]?.digest);
  const { status, events } = await copy([`${source.host}/library/app`, `${hostOf(target)}/team/app`, "--all-tags"]);
  assert.equal(status, 1);
  assert.deepEqual(await tagsOf(target, "team/app"), ["1", "2", "3"]);
  const failed = events.find(({ type }) => type === "failed");
  assert.match(String(failed?.["message"]), /does not have the blob/);
  const { copied, failed: failures, tagsMoved } = events.at(-1) ?? {};
  assert.deepEqual({ copied, failures, tagsMoved }, { copied: 3, failures: 1, tagsMoved: 3 });

  source.remove("library/app", "broken");
  source.resetCounters();
  const again = await copy([`${source.host}/library/app`, `${hostOf(target)}/team/app`, "--all-tags"]);
  assert.equal(again.status, 0);
  // The list of tags, and a HEAD of each on either side.
  assert.equal(again.events.at(-1)?.["requests"], 7);
});

test("copy logs in by docker's config.json, an upstream's auth, and a name of replication.registries", async () => {
  const users = { alice: "secret" };
  await using source = await startUpstream({ auth: { kind: "bearer", users } });
  await using target = await startRegistry({ config: TEAM });
  source.add("team/app", "1", makeImage({ layers: [100] }));
  await using folder = await place();
  const args = (from: string, to: string): string[] => [`${from}/team/app:1`, `${hostOf(target)}/team/${to}`];
  const refused = await copy(args(source.host, "none"));
  assert.equal(refused.status, 1);
  assert.match(JSON.stringify(refused.events), /401/);

  await mkdir(join(folder.path, "docker"));
  const auth = Buffer.from("alice:secret").toString("base64");
  await writeFile(join(folder.path, "docker/config.json"), JSON.stringify({ auths: { [source.host]: { auth } } }));
  const env = { DOCKER_CONFIG: join(folder.path, "docker") };
  assert.equal((await copy(args(source.host, "docker"), { env })).status, 0);

  const credentials = { username: "alice", password: "secret" };
  await folder.write({ upstreams: { "up.example": { url: source.url, auth: credentials } } });
  assert.equal((await copy([...args(source.host, "upstream"), "--config", folder.config])).status, 0);

  await folder.write({ replication: { registries: { office: { url: source.url, auth: credentials } } } });
  assert.equal((await copy([...args("office", "named"), "--config", folder.config])).status, 0);
  for (const name of ["docker", "upstream", "named"]) assert.deepEqual(await tagsOf(target, `team/${name}`), ["1"]);
});

test("a name leads to the registry that docker would ask", () => {
  const config = defaultConfig();
  const read = (text: string, plainHttp = false): string[] => {
    const { endpoint, repository, reference, named } = readPlace(text, config, { HOME: "/nowhere" }, plainHttp);
    return [endpoint.url, repository, reference, String(named)];
  };
  assert.deepEqual(read("docker.io/alpine"), ["https://registry-1.docker.io", "library/alpine", "latest", "false"]);
  assert.deepEqual(read("index.docker.io/a/b:1"), ["https://registry-1.docker.io", "a/b", "1", "true"]);
  assert.deepEqual(read("localhost:5000/app:1"), ["http://localhost:5000", "app", "1", "true"]);
  assert.deepEqual(read("dr.example:5000/app:1"), ["https://dr.example:5000", "app", "1", "true"]);
  assert.deepEqual(read("dr.example:5000/app:1", true), ["http://dr.example:5000", "app", "1", "true"]);
});

test("copy says what is wrong with its arguments", async () => {
  for (const [args, said] of [
    [["docker.io/library/alpine"], /where to/],
    [["alpine:3.20", "127.0.0.1:1/team/app"], /names no registry/],
    [["docker.io/alpine:3", "127.0.0.1:1/team/app", "--all-tags"], /without a tag/],
    [["docker.io/alpine:3", "127.0.0.1:1/team/app", "--existing", "burn"], /replace, keep, fail/],
    [["docker.io/alpine:3", "127.0.0.1:1/team/app", "--platform", "amd64"], /no platform/],
    [["docker.io/al..pine:3", "127.0.0.1:1/team/app"], /not a repository name/],
  ] as const) {
    const { status, stderr } = await run(["copy", ...args]);
    assert.equal(status, 2, stderr);
    assert.match(stderr, said);
  }
});
