/** Pulls while somebody guesses passwords. */
import { imageOf, push } from "./content.ts";
import type { Guessed, GuessTask } from "./guessers.ts";
import type { HostedTask, Paced } from "./hosted-clients.ts";
import { alternate, median, noisyVerdict, percentile, signed, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const GUESSES_PER_SECOND = 200;
const PULLS_PER_SECOND = 50;
/** More than what one address is allowed to try, and a network of hosts each of which is allowed some tries. */
const ADDRESSES = [1, 250];
const TARGET_PERCENT = 20;

export async function wrongPasswordsRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  await push(upstream, "bench/images-0", "t0", imageOf([2048, 64 * 1024, 256 * 1024], "guessed", 1024));
  await using entrepot = await lab.startEntrepot(upstream.port, undefined, { access: { open: false } });
  await using client = lab.startHelper("./hosted-clients.ts");
  await using guessers = lab.startHelper("./guessers.ts");
  const ms = quick ? 2_000 : 8_000;
  const { port } = entrepot;
  const pulls: HostedTask = {
    kind: "paced",
    port,
    clients: 1,
    imagesEach: 1,
    perSecond: PULLS_PER_SECOND,
    until: { ms },
  };
  const pulled = async (): Promise<number> => percentile((await client.ask<Paced>(pulls)).ms, 0.99);
  await pulled();
  const lines: Line[] = [];
  for (const addresses of ADDRESSES) {
    const work = `pulls, ${GUESSES_PER_SECOND} wrong passwords a second from ${addresses === 1 ? "one address" : `${addresses} addresses`}`;
    progress(work);
    const answered: Guessed = {};
    const samples = await alternate(quick ? 1 : 5, {
      alone: pulled,
      guessed: async () => {
        // For as long as the pulls take, with those that warm up.
        const task: GuessTask = { port, perSecond: GUESSES_PER_SECOND, addresses, ms: ms + 2_000 };
        const [p99, statuses] = await Promise.all([pulled(), guessers.ask<Guessed>(task)]);
        for (const [status, count] of Object.entries(statuses)) answered[status] = (answered[status] ?? 0) + count;
        return p99;
      },
    });
    if (Object.keys(answered).some((status) => status !== "401" && status !== "429")) {
      throw new Error(`guesses were answered with ${JSON.stringify(answered)}`);
    }
    const [alone, guessed] = [median(samples.alone), median(samples.guessed)];
    const percent = (guessed / alone - 1) * 100;
    lines.push({
      work,
      entrepot: `p99 ${guessed.toFixed(1)} ms, alone ${alone.toFixed(1)} ms`,
      peer: `401: ${whole(answered["401"] ?? 0)}, 429: ${whole(answered["429"] ?? 0)}`,
      result: `${signed(percent, 0)} %`,
      target: `≤ + ${TARGET_PERCENT} %`,
      verdict: noisyVerdict(bench, percent <= TARGET_PERCENT),
      samples,
    });
  }
  return lines;
}
