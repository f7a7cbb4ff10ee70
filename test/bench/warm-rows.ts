/** What a cache does all day: answers that are here already. */
import type { Image } from "../kit/images.ts";
import { GIB, imageOf, MIB, push } from "./content.ts";
import { cpuSeconds, type Helper, type Server } from "./lab.ts";
import { requestsPerSecond, type Work } from "./load.ts";
import { alternate, median, noisyVerdict, times, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const REPOSITORY = "bench/warm";
const CONFIG_BYTES = 1024;
const CONNECTIONS = 32;

/** Entrepot and docker-registry in both of its roles, all with the same image at hand. */
interface Trio extends AsyncDisposable {
  image: Image;
  entrepot: Server;
  mirror: Server;
  plain: Server;
  client: Helper;
}

async function startTrio({ lab, upstream, quick, progress }: Bench): Promise<Trio> {
  await using stack = new AsyncDisposableStack();
  progress("pushing the image, filling the caches");
  const large = quick ? 32 * MIB : 160 * MIB;
  const image = imageOf([large, 2048, 2048, 2048, 2048, 2048, 2048], "warm", CONFIG_BYTES);
  await push(upstream, REPOSITORY, "latest", image);
  const entrepot = stack.use(await lab.startEntrepot(upstream.port));
  const mirror = stack.use(await lab.startDockerRegistry(upstream.port));
  const client = stack.use(lab.startHelper("./clients.ts"));
  for (const { port } of [entrepot, mirror, upstream]) {
    await client.ask<Work>({ kind: "pull", port, repository: REPOSITORY, tag: "latest", clients: 1, lanes: 3 });
  }
  const owned = stack.move();
  return { image, entrepot, mirror, plain: upstream, client, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

export async function manifestRow(bench: Bench): Promise<Line[]> {
  await using trio = await startTrio(bench);
  const path = `/v2/${REPOSITORY}/manifests/latest`;
  return await requestRow(bench, trio, `cached manifest by tag, ${CONNECTIONS} connections`, path, 8);
}

export async function configRow(bench: Bench): Promise<Line[]> {
  await using trio = await startTrio(bench);
  const path = `/v2/${REPOSITORY}/blobs/${trio.image.config.digest}`;
  return await requestRow(bench, trio, `cached 1 KiB config blob, ${CONNECTIONS} connections`, path, 10);
}

async function requestRow(
  bench: Bench,
  { entrepot, mirror, plain }: Trio,
  work: string,
  path: string,
  target: number,
): Promise<Line[]> {
  const measure = (server: Server, seconds: number) => () =>
    requestsPerSecond(bench.lab, server, path, CONNECTIONS, seconds);
  bench.progress(`${work}: warming up`);
  await alternate(
    1,
    Object.fromEntries([entrepot, mirror, plain].map((server, i) => [i, measure(server, bench.quick ? 1 : 3)])),
  );
  bench.progress(work);
  const seconds = bench.quick ? 1 : 3;
  const samples = await alternate(bench.quick ? 1 : 5, {
    entrepot: measure(entrepot, seconds),
    mirror: measure(mirror, seconds),
    plain: measure(plain, seconds),
  });
  const own = median(samples.entrepot);
  const asMirror = own / median(samples.mirror);
  const asPlain = own / median(samples.plain);
  return [
    {
      work,
      entrepot: `${whole(own)} requests/s`,
      peer: `mirror ${whole(median(samples.mirror))}, plain ${whole(median(samples.plain))}`,
      result: `${times(asMirror)} mirror, ${times(asPlain)} plain`,
      target: `≥ ${target} × both`,
      verdict: noisyVerdict(bench, Math.min(asMirror, asPlain) >= target),
      samples,
    },
  ];
}

interface Drained {
  bytesPerSecond: number;
  cpuSecondsPerGib: number;
}

export async function layerRow(bench: Bench): Promise<Line[]> {
  await using trio = await startTrio(bench);
  const { image, client } = trio;
  const layer = image.layers[0];
  if (!layer) throw new Error("an image without a layer");
  const path = `/v2/${REPOSITORY}/blobs/${layer.digest}`;
  const drain = async ({ port, pid }: Server, connections: number, ms: number): Promise<Drained> => {
    const before = await cpuSeconds(pid);
    const work = await client.ask<Work>({ kind: "drain", port, path, connections, ms });
    const cpu = (await cpuSeconds(pid)) - before;
    return { bytesPerSecond: (work.bytes / work.ms) * 1000, cpuSecondsPerGib: cpu / (work.bytes / GIB) };
  };
  const lines: Line[] = [];
  for (const connections of [1, 4, 16]) {
    const work = `cached ${layer.sizeBytes / MIB} MiB layer, ${connections} connection${connections === 1 ? "" : "s"}`;
    bench.progress(work);
    const cpu: Record<string, number[]> = { entrepot: [], mirror: [], plain: [] };
    const measure = (name: "entrepot" | "mirror" | "plain") => async () => {
      await drain(trio[name], connections, 300);
      const { bytesPerSecond, cpuSecondsPerGib } = await drain(trio[name], connections, bench.quick ? 1_000 : 3_000);
      cpu[name]?.push(cpuSecondsPerGib);
      return bytesPerSecond;
    };
    const speed = await alternate(bench.quick ? 1 : 5, {
      entrepot: measure("entrepot"),
      mirror: measure("mirror"),
      plain: measure("plain"),
    });
    lines.push(...layerLines(bench, work, speed, cpu));
  }
  return lines;
}

/** Against the better of its two roles. */
function layerLines(bench: Bench, work: string, speed: Line["samples"], cpu: Line["samples"]): Line[] {
  const of = (samples: Line["samples"], name: string): number => median(samples[name] ?? []);
  const faster = of(speed, "entrepot") / Math.max(of(speed, "mirror"), of(speed, "plain"));
  const cheaper = of(cpu, "entrepot") / Math.min(of(cpu, "mirror"), of(cpu, "plain"));
  const mib = (name: string): string => whole(of(speed, name) / MIB);
  const seconds = (name: string): string => of(cpu, name).toFixed(2);
  return [
    {
      work,
      entrepot: `${mib("entrepot")} MiB/s`,
      peer: `mirror ${mib("mirror")}, plain ${mib("plain")}`,
      result: times(faster),
      target: "≥ 1.0 ×",
      verdict: noisyVerdict(bench, faster >= 1),
      samples: speed,
    },
    {
      work: `${work}: CPU`,
      entrepot: `${seconds("entrepot")} s/GiB`,
      peer: `mirror ${seconds("mirror")}, plain ${seconds("plain")}`,
      result: times(cheaper),
      target: "≤ 0.85 ×",
      verdict: noisyVerdict(bench, cheaper <= 0.85),
      samples: cpu,
    },
  ];
}
