/** What the daemon copies by itself: after a push, and a layer that is larger than memory. */
import { setTimeout as delay } from "node:timers/promises";
import { makeImage, type Image } from "../kit/images.ts";
import { GIB, MIB, push } from "./content.ts";
import { startWay } from "./far-way.ts";
import { residentBytes, resetPeak, type Server } from "./lab.ts";
import { median, noisyVerdict, percentile, signed, verdict, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const POLL_MS = 2;
const PATIENCE_MS = 30_000;
const LAYER_BYTES = 64 * 1024;
const MOST_PUSH_MS = 1000;

/** From the answer to a push of a tag until another registry has the tag, 30 ms away. */
export async function pushCopyRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const pushes = quick ? 20 : 100;
  await using target = await lab.startDockerRegistry();
  await using way = await startWay(lab, target.port);
  await using entrepot = await lab.startEntrepot(upstream.port, undefined, {
    hosted: { namespaces: ["team"] },
    replication: {
      registries: { target: { url: `http://127.0.0.1:${way.port}` } },
      rules: [
        {
          name: "all",
          from: { registry: "self", repositories: ["team/app"] },
          to: [{ registry: "target" }],
          on: { push: true },
        },
      ],
    },
  });
  const before = (await way.carried()).requests;
  progress(`${pushes} pushes`);
  const ms: number[] = [];
  for (let nth = 0; nth < pushes; nth++) {
    const image = makeImage({ layers: [LAYER_BYTES], seed: `push ${nth}` });
    await push(entrepot, "team/app", `1.${nth}`, image);
    ms.push(await untilThere(target, "team/app", `1.${nth}`, image));
  }
  const requests = ((await way.carried()).requests - before) / pushes;
  const p95 = percentile(ms, 0.95);
  return [
    {
      work: `push of a small image to tag visible at a registry 30 ms away, ${pushes} pushes`,
      entrepot: `median ${whole(median(ms))} ms, p95 ${whole(p95)} ms`,
      peer: "–",
      result: `p95 ${whole(p95)} ms, ${requests.toFixed(1)} requests each`,
      target: "p95 < 1 s",
      verdict: noisyVerdict(bench, p95 < MOST_PUSH_MS),
      samples: { ms },
    },
  ];
}

/** @returns milliseconds @throws Error where it does not come */
async function untilThere({ port }: Server, repository: string, tag: string, image: Image): Promise<number> {
  const startedAtMs = performance.now();
  for (;;) {
    const answer = await fetch(`http://127.0.0.1:${port}/v2/${repository}/manifests/${tag}`, {
      method: "HEAD",
      headers: { accept: image.mediaType },
    });
    const ms = performance.now() - startedAtMs;
    if (answer.status === 200) return ms;
    if (ms > PATIENCE_MS) throw new Error(`${repository}:${tag} is not there after ${PATIENCE_MS} ms`);
    await delay(POLL_MS);
  }
}

const SAMPLE_MS = 200;
const MOST_MIB = 200;
const MOST_GROWTH_MIB = 20;
const LONGEST_RUN_MS = 600_000;

/** The daemon's memory while a rule of it copies one large layer between two other registries. */
export async function daemonMemoryRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const layerBytes = (quick ? 1 : 10) * GIB;
  const image = makeImage({ layers: [layerBytes], seed: "large" });
  await using target = await lab.startDockerRegistry();
  await using entrepot = await lab.startEntrepot(upstream.port, undefined, {
    replication: {
      registries: {
        source: { url: `http://127.0.0.1:${upstream.port}` },
        target: { url: `http://127.0.0.1:${target.port}` },
      },
      rules: [
        { name: "all", from: { registry: "source", repositories: ["bench/large"] }, to: [{ registry: "target" }] },
      ],
    },
  });
  progress("pushing the layer");
  await push(upstream, "bench/large", "1", image);
  progress("copying");
  await resetPeak(entrepot.pid);
  const startedAtMs = performance.now();
  const begun = await fetch(`http://127.0.0.1:${entrepot.port}/api/v1/replication/rules/all/run`, {
    method: "POST",
    headers: { "content-type": "application/json" },
  });
  if (begun.status !== 202) throw new Error(`the run was refused: ${begun.status} ${await begun.text()}`);
  await begun.arrayBuffer();
  const resident: number[] = [];
  const isThere = async (): Promise<boolean> => {
    const path = `http://127.0.0.1:${target.port}/v2/bench/large/manifests/1`;
    return (await fetch(path, { method: "HEAD", headers: { accept: image.mediaType } })).status === 200;
  };
  while (!(await isThere())) {
    if (performance.now() - startedAtMs > LONGEST_RUN_MS) throw new Error("the copy takes too long");
    resident.push((await residentBytes(entrepot.pid)).now / MIB);
    await delay(SAMPLE_MS);
  }
  const seconds = (performance.now() - startedAtMs) / 1000;
  const peak = (await residentBytes(entrepot.pid)).peak / MIB;
  const half = resident.length >> 1;
  const growth = Math.max(...resident.slice(half)) - Math.max(...resident.slice(0, half));
  return [
    {
      work: `memory of the daemon while a rule copies a layer of ${whole(layerBytes / GIB)} GiB, in ${seconds.toFixed(0)} s`,
      entrepot: `${whole(peak)} MiB resident, second half ${signed(growth, 0)} MiB`,
      peer: "–",
      result: `${whole(peak)} MiB`,
      target: `< ${MOST_MIB} MiB, ≤ + ${MOST_GROWTH_MIB} MiB`,
      // A quick run has hardly begun to be flat.
      verdict: verdict(peak < MOST_MIB && (quick || growth <= MOST_GROWTH_MIB)),
      samples: { resident, peak: [peak] },
    },
  ];
}
