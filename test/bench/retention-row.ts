/** A dry run of retention over many tags, which tells of each why it stays or goes, while others ask the daemon how it is. */
import { Agent, request } from "node:http";
import { digestNamed, fillDatabase, NAMESPACE } from "./fill.ts";
import type { HostedTask, Told } from "./hosted-clients.ts";
import { residentBytes, resetPeak } from "./lab.ts";
import { median, noisyVerdict, percentile, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const DAY_MS = 86_400_000;
const MIB = 2 ** 20;
const PLAN_MS = 10_000;
const PEAK_BYTES = 300 * MIB;
const DELAY_MS = 20;
/** Of the pings: what holds up the event loop for longer than that is noticed. */
const PING_EVERY_MS = 2;

const CONFIG = {
  retention: {
    schedule: "never",
    rules: [
      {
        repositories: [`${NAMESPACE}/**`],
        keep: {
          tags: ["latest", "release-*"],
          semver: ">=2",
          latestPushed: 10,
          latestPulled: 5,
          pushedWithin: "30d",
        },
      },
    ],
  },
};

export async function retentionRow(bench: Bench): Promise<Line[]> {
  const tags = bench.quick ? 100_000 : 1_000_000;
  return [...(await dryRun(bench, 1, tags)), ...(await dryRun(bench, tags / 100, 100))];
}

async function dryRun(bench: Bench, repositories: number, tagsEach: number): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const tags = repositories * tagsEach;
  const root = await lab.newFolder("entrepot");
  await (await lab.startEntrepot(upstream.port, root))[Symbol.asyncDispose]();
  progress(`writing ${whole(repositories)} repositories with ${whole(tagsEach)} tags`);
  fill(root, repositories, tagsEach);
  await using server = await lab.startEntrepot(upstream.port, root, CONFIG);
  await using client = lab.startHelper("./hosted-clients.ts");
  const { port, pid } = server;
  const task: HostedTask = { kind: "told", port, path: "/api/v1/retention", body: { dryRun: true } };
  const samples: Record<"ms" | "peak" | "delay" | "quiet", number[]> = { ms: [], peak: [], delay: [], quiet: [] };
  for (let round = 0; round < (quick ? 1 : 3); round++) {
    const quiet = await pings(port, new Promise((resolve) => setTimeout(resolve, 2_000)));
    await resetPeak(pid);
    const running = client.ask<Told>(task);
    const during = await pings(port, running);
    const { ms, last } = await running;
    const report = JSON.parse(last) as { kept: number; removed: number };
    if (report.kept + report.removed !== tags) throw new Error(`not all were looked at: ${last}`);
    samples.ms.push(ms);
    samples.peak.push((await residentBytes(pid)).peak);
    samples.delay.push(Math.max(...during));
    samples.quiet.push(Math.max(...quiet));
    progress(`${whole(ms)} ms, pings p99 ${percentile(during, 0.99).toFixed(1)} ms, ${last}`);
  }
  const [ms, peak, delay, quiet] = [samples.ms, samples.peak, samples.delay, samples.quiet].map(median) as [
    number,
    number,
    number,
    number,
  ];
  return [
    {
      work: `retention, dry run over ${whole(tags)} tags in ${repositories === 1 ? "one repository" : `${whole(repositories)} repositories`}`,
      entrepot: `${(ms / 1000).toFixed(1)} s, peak ${whole(peak / MIB)} MiB, longest ping ${delay.toFixed(1)} ms, without ${quiet.toFixed(1)} ms`,
      peer: "–",
      result: `${(ms / 1000).toFixed(1)} s`,
      target: "< 10 s, < 300 MiB, < 20 ms",
      verdict: noisyVerdict(bench, ms < PLAN_MS && peak < PEAK_BYTES && delay < DELAY_MS),
      samples,
    },
  ];
}

/** Builds of four hundred days, several to a digest, two thirds of them pulled. */
function fill(root: string, repositories: number, tagsEach: number): void {
  const nowMs = Date.now();
  fillDatabase(root, (into) => {
    into("namespaces (name, created_at)")({ name: NAMESPACE, created_at: 0 });
    const addRepository = into("repositories (id, name, created_at)");
    const addTag = into("tags (repository_id, name, digest, updated_at, checked_at, pulled_at)");
    for (let id = 1; id <= repositories; id++) {
      addRepository({ id, name: `${NAMESPACE}/app-${String(id).padStart(6, "0")}`, created_at: 0 });
      for (let n = 0; n < tagsEach; n++) {
        const at = nowMs - ((n * 7919) % 400) * DAY_MS - n;
        addTag({
          repository_id: id,
          name: `build-${String(n).padStart(7, "0")}`,
          digest: digestNamed(String(n % 1000)),
          updated_at: at,
          checked_at: at,
          pulled_at: n % 3 === 0 ? null : at,
        });
      }
    }
  });
}

/** Asks again and again, one after the other, until the promise is settled. @returns the milliseconds of each */
async function pings(port: number, until: Promise<unknown>): Promise<number[]> {
  const agent = new Agent({ keepAlive: true });
  const over = new AbortController();
  const ended = until.finally(() => over.abort());
  const ms: number[] = [];
  while (!over.signal.aborted) {
    const startedAt = performance.now();
    await ping(agent, port);
    ms.push(performance.now() - startedAt);
    await new Promise((resolve) => setTimeout(resolve, PING_EVERY_MS));
  }
  agent.destroy();
  await ended;
  return ms;
}

function ping(agent: Agent, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const sent = request({ agent, host: "127.0.0.1", port, path: "/livez" }, (response) => {
      response.resume();
      response.once("end", resolve);
    });
    sent.once("error", reject);
    sent.end();
  });
}
