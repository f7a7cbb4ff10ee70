import assert from "node:assert/strict";
import { readdir, truncate } from "node:fs/promises";
import { join } from "node:path";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { startUpstream } from "../kit/upstream.ts";
import { startEntrepot, type Entrepot } from "./entrepot.ts";
import { eventually } from "./machine.ts";

/** A daemon that is pulled from again and again, in every way that moves a metric. */
export interface Traffic extends AsyncDisposable {
  readonly entrepot: Entrepot;
  /** Goes through once: hits, misses, joined downloads, absences, evictions, a damaged file, wrong bytes, errors of the upstream, a copy. */
  round(): Promise<void>;
}

// Beyond what is kept in memory, so that a damaged file is noticed; the cap holds about three images.
const LAYER_BYTES = 400 * 1024;
const CAP_BYTES = 2 * 1024 * 1024;

export async function startTraffic(folder: string): Promise<Traffic> {
  await using stack = new AsyncDisposableStack();
  const rateLimit = { limit: 10_000, remaining: 9_000, windowSeconds: 3600 };
  const upstream = stack.use(await startUpstream({ rateLimit }));
  const entrepot = stack.use(
    await startEntrepot(folder, {
      upstreams: { "docker.io": { url: upstream.url, prefetch: false, notFoundTtl: "1m" } },
      storage: { cacheMaxSize: CAP_BYTES },
      hosted: { namespaces: ["copies"] },
      replication: {
        registries: { hub: { url: upstream.url } },
        rules: [
          {
            name: "copies",
            from: { registry: "hub", repositories: ["library/copied"] },
            to: [{ registry: "self", repository: "copies/{{name}}" }],
          },
        ],
      },
    }),
  );
  upstream.fault({ path: "/manifests/failing" }, { status: 500 });

  const get = async (path: string): Promise<{ status: number; bytes: Buffer }> => {
    const answer = await fetch(`${entrepot.url}/v2/library/app/${path}`);
    return { status: answer.status, bytes: Buffer.from(await answer.arrayBuffer()) };
  };
  const pull = async (digest: Digest): Promise<void> => {
    const { status, bytes } = await get(`blobs/${digest}`);
    assert.equal(status, 200, bytes.toString().slice(0, 300));
    assert.equal(digestOf(bytes), digest);
  };
  let rounds = 0;
  const round = async (): Promise<void> => {
    rounds += 1;
    const image = makeImage({ layers: [LAYER_BYTES, LAYER_BYTES], seed: `traffic ${rounds}` });
    const [layer, wrong] = image.layers.map(({ digest }) => digest) as [Digest, Digest];
    upstream.add("library/app", `v${rounds}`, image);
    upstream.add("library/copied", "latest", makeImage({ layers: [1000], seed: `copied ${rounds}` }));
    const ran = await fetch(`${entrepot.url}/api/v1/replication/rules/copies/run`, {
      method: "POST",
      headers: { "content-type": "application/json" },
    });
    assert.equal(ran.status, 202, await ran.text());
    assert.equal((await get(`manifests/v${rounds}`)).status, 200);
    // The second comes while the first waits for its bytes.
    const gate = upstream.hold({ path: layer });
    const cold = pull(layer);
    await gate.reached;
    const joined = pull(layer);
    gate.release();
    await Promise.all([cold, joined, pull(image.config.digest)]);
    // It is in its place soon after its last byte was sent.
    let file: string | undefined;
    await eventually("the layer is stored", async () => (file = await fileOf(entrepot.root, layer)) !== undefined);
    await pull(layer);
    await truncate(file ?? "", 1000);
    await pull(layer);
    upstream.fault({ path: wrong }, { corruptByte: 5 });
    await assert.rejects(pull(wrong), "wrong bytes are never served as whole");
    assert.equal((await get("manifests/absent")).status, 404);
    assert.ok((await get("manifests/failing")).status >= 500);
  };
  const owned = stack.move();
  return { entrepot, round, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function fileOf(root: string, digest: Digest): Promise<string | undefined> {
  const hex = digest.slice(digest.indexOf(":") + 1);
  const files = await readdir(join(root, "blobs"), { recursive: true, withFileTypes: true });
  const found = files.find((entry) => entry.isFile() && entry.name.includes(hex));
  return found && join(found.parentPath, found.name);
}
