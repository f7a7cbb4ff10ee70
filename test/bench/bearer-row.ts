/** What access control costs whoever has logged in. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { hashSync } from "bcryptjs";
import { imageOf, push } from "./content.ts";
import { cpuSeconds, type Server } from "./lab.ts";
import { requestsPerSecond } from "./load.ts";
import { alternate, median, noisyVerdict, times, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const REPOSITORY = "bench/bearer";
const CONNECTIONS = 32;
const SHARE = 0.8;
const ISSUED_PER_SECOND = 2_000;
const BASIC = `Basic ${Buffer.from("busy:bee").toString("base64")}`;
const SCOPE = `repository:${REPOSITORY}:pull`;

/** Where the user busy may log in, and whoever else does not. */
async function startClosed({ lab, upstream }: Bench): Promise<Server> {
  const path = join(await lab.newFolder("auth"), "htpasswd");
  await writeFile(path, `busy:${hashSync("bee", 10)}\n`);
  const access = { open: false, htpasswd: { path }, tokens: { life: "1h" } };
  return lab.startEntrepot(upstream.port, undefined, { access });
}

const tokenPath = `/token?service=entrepot&scope=${encodeURIComponent(SCOPE)}`;

async function tokenOf({ port }: Server): Promise<string> {
  const answer = await fetch(`http://127.0.0.1:${port}${tokenPath}`, { headers: { authorization: BASIC } });
  if (!answer.ok) throw new Error(`no token: ${answer.status} ${await answer.text()}`);
  return ((await answer.json()) as { token: string }).token;
}

export async function bearerRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  progress("pushing the image, filling the caches");
  await push(upstream, REPOSITORY, "latest", imageOf([2048, 2048], "bearer", 1024));
  await using open = await lab.startEntrepot(upstream.port, undefined, { access: { open: true } });
  await using closed = await startClosed(bench);
  const headers = { authorization: `Bearer ${await tokenOf(closed)}` };
  const path = `/v2/${REPOSITORY}/manifests/latest`;
  const measure = (server: Server, seconds: number) => () =>
    requestsPerSecond(lab, server, path, CONNECTIONS, seconds, server === closed ? headers : {});
  progress("warming up");
  const seconds = quick ? 1 : 2;
  await alternate(1, { open: measure(open, seconds), bearer: measure(closed, seconds) });
  progress("pulling with a token, and without");
  // Many short rounds: from one to the next, the machine's own speed differs by more than what is measured.
  const samples = await alternate(quick ? 1 : 15, { open: measure(open, seconds), bearer: measure(closed, seconds) });
  const [without, own] = [median(samples.open), median(samples.bearer)];
  return [
    {
      work: `cached manifest by tag with a Bearer token, ${CONNECTIONS} connections`,
      entrepot: `${whole(own)} requests/s`,
      peer: `without access control ${whole(without)}`,
      result: times(own / without),
      target: `≥ ${SHARE} ×`,
      verdict: noisyVerdict(bench, own / without >= SHARE),
      samples,
    },
  ];
}

export async function tokenIssueRow(bench: Bench): Promise<Line[]> {
  const { lab, quick, progress } = bench;
  await using closed = await startClosed(bench);
  // The first login: its password is remembered from then on.
  await tokenOf(closed);
  const headers = { authorization: BASIC };
  const issue = (seconds: number): Promise<number> =>
    requestsPerSecond(lab, closed, tokenPath, CONNECTIONS, seconds, headers);
  progress("warming up");
  await issue(quick ? 1 : 3);
  progress("issuing tokens");
  const perCpuSecond: number[] = [];
  const samples = await alternate(quick ? 1 : 5, {
    entrepot: async () => {
      const seconds = quick ? 1 : 3;
      const [before, startedAt] = [await cpuSeconds(closed.pid), performance.now()];
      const perSecond = await issue(seconds);
      const cores = ((await cpuSeconds(closed.pid)) - before) / ((performance.now() - startedAt) / 1000);
      perCpuSecond.push(perSecond / cores);
      return perSecond;
    },
  });
  const onOneCore = median(perCpuSecond);
  return [
    {
      work: `tokens issued after a first login, ${CONNECTIONS} connections`,
      entrepot: `${whole(median(samples.entrepot))} a second`,
      peer: "–",
      result: `${whole(onOneCore)} a second of one core`,
      target: `≥ ${whole(ISSUED_PER_SECOND)}`,
      verdict: noisyVerdict(bench, onOneCore >= ISSUED_PER_SECOND),
      samples: { ...samples, perCpuSecond },
    },
  ];
}
