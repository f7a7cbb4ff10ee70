/** The memory of a copy of one large layer. */
import { setTimeout as delay } from "node:timers/promises";
import { makeImage } from "../kit/images.ts";
import { GIB, MIB, push } from "./content.ts";
import { MAIN } from "./copy-tools.ts";
import { residentBytes } from "./lab.ts";
import { noisyVerdict, signed, verdict, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const SAMPLE_MS = 200;
const MOST_MIB = 200;
const MOST_GROWTH_MIB = 20;

/** `entrepot copy` between two registries of this machine. */
export async function copyMemoryRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const layerBytes = (quick ? 1 : 10) * GIB;
  await using target = await lab.startDockerRegistry();
  progress("pushing the layer");
  await push(upstream, "bench/large", "1", makeImage({ layers: [layerBytes], seed: "large" }));
  progress("copying");
  const resident: number[] = [];
  let peak = 0;
  const ended = new AbortController();
  let sampling: Promise<void> | undefined;
  const sample = async (pid: number): Promise<void> => {
    while (!ended.signal.aborted) {
      const { now, peak: most } = await residentBytes(pid).catch(() => ({ now: NaN, peak: NaN }));
      // Of a process that is at its end nothing is told.
      if (now > 0) resident.push(now / MIB);
      if (most > 0) peak = most / MIB;
      await delay(SAMPLE_MS, undefined, { signal: ended.signal }).catch(() => undefined);
    }
  };
  const names = [`127.0.0.1:${upstream.port}/bench/large:1`, `127.0.0.1:${target.port}/bench/large`];
  const startedAtMs = performance.now();
  try {
    await lab.run(process.execPath, [MAIN, "copy", ...names], (pid) => {
      sampling = sample(pid);
    });
  } finally {
    ended.abort();
    await sampling;
  }
  const seconds = (performance.now() - startedAtMs) / 1000;
  const half = resident.length >> 1;
  const growth = Math.max(...resident.slice(half)) - Math.max(...resident.slice(0, half));
  const work = `memory of \`entrepot copy\` with a layer of ${whole(layerBytes / GIB)} GiB, in ${seconds.toFixed(0)} s`;
  return [
    {
      work,
      entrepot: `${whole(peak)} MiB resident`,
      peer: "–",
      result: `${whole(peak)} MiB`,
      target: `< ${MOST_MIB} MiB`,
      verdict: verdict(peak < MOST_MIB),
      samples: { resident, peak: [peak] },
    },
    {
      work: `${work}: second half of the run beside the first`,
      entrepot: `${signed(growth, 0)} MiB`,
      peer: "–",
      result: `${signed(growth, 0)} MiB`,
      target: `≤ + ${MOST_GROWTH_MIB} MiB`,
      // A quick run has hardly begun.
      verdict: noisyVerdict(bench, growth <= MOST_GROWTH_MIB),
      samples: {},
    },
  ];
}
