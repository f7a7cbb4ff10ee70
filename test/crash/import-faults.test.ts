import assert from "node:assert/strict";
import { existsSync, statSync } from "node:fs";
import { mkdtemp, realpath, rm, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { hexOf } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { RegistryFolder } from "../moving/registry-folder.ts";
import { startDaemon } from "./daemon.ts";
import { inject, type Injection } from "./strace.ts";

const broken = makeImage({ layers: [3000, 500], seed: "broken" });
const whole = makeImage({ layers: [2000], seed: "whole" });
const [layer] = broken.layers;
assert.ok(layer);
/** Another file system than that of temporary files. */
const ELSEWHERE = "/dev/shm";
const isElsewhere = existsSync(ELSEWHERE) && statSync(ELSEWHERE).dev !== statSync(tmpdir()).dev;
const LEFT_OUT_WITH_IT = [`manifest team/app ${broken.digest}`, "tag team/app broken"];

interface Fault {
  calls: string;
  path: (source: RegistryFolder) => string;
  /** Without its reason. */
  leftOut: string[];
  reason: RegExp;
  /** The source is on another file system. */
  elsewhere?: true;
  deferVerification?: true;
}

const repository = (source: RegistryFolder): string => join(source.root, "repositories/team/app");
const FAULTS: Record<string, Fault> = {
  "a blob while it is proven": {
    calls: "read,pread64",
    path: (source) => source.data(layer.digest),
    leftOut: [`blob  ${layer.digest}`, ...LEFT_OUT_WITH_IT],
    reason: /^its file can't be read \(EIO\)$/,
  },
  "a blob while it is copied": {
    calls: "read,pread64,sendfile,copy_file_range",
    path: (source) => source.data(layer.digest),
    leftOut: [`blob  ${layer.digest}`, ...LEFT_OUT_WITH_IT],
    reason: /^its file can't be read \(EIO\)$/,
    elsewhere: true,
    deferVerification: true,
  },
  "a blob that is brought to the disk": {
    calls: "fsync",
    path: (source) => source.data(layer.digest),
    leftOut: [`blob  ${layer.digest}`, ...LEFT_OUT_WITH_IT],
    reason: /^its file can't be brought to the disk \(EIO\)$/,
  },
  "a manifest": {
    calls: "read,pread64",
    path: (source) => source.data(broken.digest),
    leftOut: LEFT_OUT_WITH_IT,
    reason: /^it can't be read \(EIO\)$/,
  },
  "a link to a manifest": {
    calls: "open,openat",
    path: (source) => source.revision("team/app", broken.digest),
    leftOut: LEFT_OUT_WITH_IT,
    reason: /^it can't be read \(EIO\)$/,
  },
  "the list of a repository's tags": {
    calls: "getdents64",
    path: (source) => join(repository(source), "_manifests/tags"),
    leftOut: ['other "repositories/team/app/_manifests/tags"'],
    reason: /^it can't be read \(EIO\)$/,
  },
  "a repository's folder": {
    calls: "getdents64",
    path: repository,
    leftOut: ['other "repositories/team/app"'],
    reason: /^it can't be read \(EIO\)$/,
  },
};

for (const [what, { calls, path, leftOut, reason, elsewhere, deferVerification = false }] of Object.entries(FAULTS)) {
  test(
    `where the disk fails under ${what}, that is left out, and all else comes over`,
    { skip: elsewhere && !isElsewhere && "it takes a second file system" },
    async () => {
      const folder = await realpath(await mkdtemp(join(elsewhere ? ELSEWHERE : tmpdir(), "entrepot-source-")));
      const root = await mkdtemp(join(tmpdir(), "entrepot-"));
      try {
        const source = new RegistryFolder(folder);
        await source.image("team/app", broken, "broken");
        await source.image("zoo/app", whole, "whole");
        // What is older is brought to the disk with all others, by one call that does not name it.
        const soon = Date.now() / 1000 + 60;
        await utimes(source.data(layer.digest), soon, soon);
        await using daemon = await startDaemon({
          root,
          config: { upstreams: { "docker.io": { url: "http://127.0.0.1:9" } } },
        });
        const fault: Injection = { calls, effect: "error=EIO", path: path(source) };
        const told = await (async () => {
          await using _strace = await inject(daemon.pid, fault);
          return await importFolder(daemon.url, { path: folder, deferVerification });
        })();
        const left = told.filter(({ type }) => type === "leftOut");
        assert.deepEqual(
          left.map(({ kind, name, tag, digest }) => `${kind} ${name} ${tag ?? digest ?? ""}`.trimEnd()),
          leftOut,
        );
        assert.match(String(left[0]?.reason), reason);
        const done = told.at(-1);
        assert.deepEqual([done?.type, done?.leftOut], ["done", leftOut.length], JSON.stringify(done));
        const pulled = await fetch(`${daemon.url}/v2/zoo/app/blobs/sha256:${hexOf(whole.config.digest)}`);
        assert.deepEqual(Buffer.from(await pulled.arrayBuffer()), whole.config.bytes);
        // Once the disk is whole again, another run brings the rest.
        const again = await importFolder(daemon.url, { path: folder, deferVerification: false });
        assert.deepEqual([again.at(-1)?.type, again.at(-1)?.leftOut], ["done", 0]);
        const tag = await fetch(`${daemon.url}/v2/team/app/manifests/broken`);
        assert.equal(tag.status, 200);
      } finally {
        await rm(root, { recursive: true, force: true });
        await rm(folder, { recursive: true, force: true });
      }
    },
  );
}

interface Told {
  type: string;
  kind?: string;
  name?: string;
  tag?: string;
  digest?: string;
  reason?: string;
  leftOut?: number;
}

async function importFolder(url: string, body: object): Promise<Told[]> {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${url}/api/v1/import`, { method: "POST", headers, body: JSON.stringify(body) });
  const text = await answer.text();
  assert.equal(answer.status, 200, text);
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Told);
}
