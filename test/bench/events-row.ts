/** Pages of the record of what happened. */
import { createReadStream } from "node:fs";
import { join } from "node:path";
import { digestNamed, fillDatabase, NAMESPACE } from "./fill.ts";
import type { HostedTask } from "./hosted-clients.ts";
import { noisyVerdict, percentile, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const PAGE = 100;
const P99_MS = 20;
const PAGES = 1_000;
const WARM_UP_PAGES = 100;
const DIGESTS = 20_000;
/** One event each: 10,000,000 are a year of nineteen a minute. */
const STEP_MS = 3_000;
const BEGIN_MS = Date.UTC(2026, 0, 1);

const AGENT = "docker/27.3.1 go/go1.22.7 git-commit/41ca978 kernel/6.1.0 os/linux arch/amd64";

export async function eventsRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, progress, quick } = bench;
  const count = quick ? 200_000 : 10_000_000;
  const repositories = count / 10_000;
  const actors = count / 50_000;
  const root = await lab.newFolder("entrepot");
  // The daemon makes the schema itself.
  await (await lab.startEntrepot(upstream.port, root))[Symbol.asyncDispose]();
  progress(`filling in ${whole(count)} events`);
  fill(root, count, repositories, actors);
  await readOnce(join(root, "entrepot.db"));

  // Most of them are older than events are kept: else the daemon would remove millions of them while pages are read.
  await using entrepot = await lab.startEntrepot(upstream.port, root, { events: { keep: "0s" } });
  await using client = lab.startHelper("./hosted-clients.ts");
  const ask = (paths: string[], items?: number): Promise<number[]> => {
    const task: HostedTask = {
      kind: "pages",
      port: entrepot.port,
      paths,
      ...(items === undefined ? {} : { names: items }),
    };
    return client.ask<number[]>(task);
  };
  const any = (most: number): number => Math.floor(Math.random() * most);
  // Any place that a whole page follows: of ten million, no repository and no actor has fewer than a hundred events in the first half.
  const full = quick ? undefined : PAGE;
  const place = (): string => `until=${new Date(BEGIN_MS + (count / 2 + any(count / 2)) * STEP_MS).toISOString()}`;
  const kinds: [what: string, items: number | undefined, query: () => string][] = [
    ["by time", full, place],
    ["by repository", full, () => `repository=${NAMESPACE}/app-${any(repositories)}&${place()}`],
    ["by actor", full, () => `actor=user-${any(actors)}&${place()}`],
    // What few events or none are like: as many are looked at as ever are.
    ["by repository and tag", undefined, () => `repository=${NAMESPACE}/app-${any(10)}&tag=none&${place()}`],
    ["by tag and outcome", undefined, () => `tag=none&outcome=done&${place()}`],
  ];
  const lines: Line[] = [];
  for (const [what, items, query] of kinds) {
    const work = `page of ${PAGE} among ${whole(count)} events, ${what}`;
    progress(work);
    const paths = (pages: number): string[] =>
      Array.from({ length: pages }, () => `/api/v1/events?limit=${PAGE}&${query()}`);
    await ask(paths(WARM_UP_PAGES), items);
    const samples = await ask(paths(PAGES), items);
    const p99 = percentile(samples, 0.99);
    lines.push({
      work,
      entrepot: `p99 ${p99.toFixed(1)} ms`,
      peer: "–",
      result: `p99 ${p99.toFixed(1)} ms`,
      target: `p99 < ${P99_MS} ms`,
      verdict: noisyVerdict(bench, p99 < P99_MS),
      samples: { entrepot: samples },
    });
  }
  return lines;
}

/**
 * Brings a file into memory. A page by repository is a hundred rows from all over it: each that the disk has to bring costs 0.05 ms on a
 * disk that is idle, and milliseconds on one that still writes what was filled in.
 */
async function readOnce(path: string): Promise<void> {
  for await (const _ of createReadStream(path, { highWaterMark: 4 * 1024 * 1024 }));
}

/** Pulls, with a push now and then, of repositories and by users of whom some do a hundred times as much as others. */
function fill(root: string, count: number, repositories: number, actors: number): void {
  const digests = Array.from({ length: DIGESTS }, (_, i) => digestNamed(`event-${i}`));
  fillDatabase(root, (into) => {
    const add = into(
      "events (at, action, outcome, repository, tag, digest, media_type, size, actor, address, agent, request_id)",
    );
    for (let i = 0; i < count; i++) {
      // A square is denser near 0: the first repositories are the busiest.
      const repository = Math.floor(Math.random() ** 2 * repositories);
      add({
        at: BEGIN_MS + i * STEP_MS,
        action: i % 50 === 0 ? "push" : "pull",
        outcome: i % 1000 === 0 ? "denied" : "done",
        repository: `${NAMESPACE}/app-${repository}`,
        tag: `build-${i % 97}`,
        digest: digests[(repository * 20 + (i % 20)) % DIGESTS] ?? "",
        media_type: "application/vnd.oci.image.index.v1+json",
        size: 2_000,
        actor: `user-${Math.floor(Math.random() ** 2 * actors)}`,
        address: `10.0.${i % 4}.${i % 251}`,
        agent: AGENT,
        request_id: `q1w2e3-${i.toString(36)}`,
      });
    }
  });
}
