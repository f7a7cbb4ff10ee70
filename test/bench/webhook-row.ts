/** Whether those who push notice that others are told of it. */
import { setTimeout as delay } from "node:timers/promises";
import type { HostedTask, Pushed } from "./hosted-clients.ts";
import { freePort, type Server } from "./lab.ts";
import { alternate, median, noisyVerdict, times, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";
import type { Ports, ReceiverTask } from "./webhook-receivers.ts";

const CLIENTS = 16;
/** The config and two layers. */
const BLOB_BYTES = [1024, 4096, 4096];
const ALIVE = 8;
const WAIT_MS = 60_000;

export async function webhookRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  await using receivers = lab.startHelper("./webhook-receivers.ts");
  const ask = <Result>(task: ReceiverTask): Promise<Result> => receivers.ask<Result>(task);
  const { alive, silent } = await ask<Ports>({ kind: "listen" });
  const dead = [silent, await freePort()];
  const webhooks = [...Array.from({ length: ALIVE }, () => alive), ...dead].map((port, index) => ({
    name: `endpoint-${index}`,
    url: `http://127.0.0.1:${port}/${index}`,
    secret: "s3cret",
    format: index % 2 === 0 ? "distribution" : "cloudevents",
  }));
  await using telling = await lab.startEntrepot(upstream.port, undefined, { webhooks });
  await using silentOne = await lab.startEntrepot(upstream.port);
  await using client = lab.startHelper("./hosted-clients.ts");
  const work = `push of a small image, ${CLIENTS} clients, ten webhooks of which two are dead, against none`;
  let pushed = 0;
  const measure =
    ({ port }: Server, ms: number) =>
    async () => {
      const task: HostedTask = { kind: "images", port, clients: CLIENTS, blobBytes: BLOB_BYTES, ms };
      const done = await client.ask<Pushed>(task);
      if (port === telling.port) pushed += done.count;
      return (done.count / done.ms) * 1000;
    };
  const measures = (ms: number) => ({ telling: measure(telling, ms), silent: measure(silentOne, ms) });
  progress(`${work}: warming up`);
  await alternate(1, measures(quick ? 1_000 : 3_000));
  progress(work);
  const samples = await alternate(quick ? 2 : 7, measures(quick ? 1_000 : 3_000));
  const deadline = performance.now() + WAIT_MS;
  // A push is one event of a manifest for each of those who live.
  for (let taken = 0; taken < pushed * ALIVE; taken = await ask<number>({ kind: "taken" })) {
    if (performance.now() > deadline) throw new Error(`${taken} of ${pushed * ALIVE} events were delivered`);
    await delay(100);
  }
  const [own, without] = [median(samples.telling), median(samples.silent)];
  return [
    {
      work,
      entrepot: `${whole(own)} images/s, without ${whole(without)}`,
      peer: "–",
      result: times(own / without),
      target: "≥ 0.95 ×",
      verdict: noisyVerdict(bench, own / without >= 0.95),
      samples,
    },
  ];
}
