/** What a private registry does when images are pushed to it. */
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { GIB, MIB } from "./content.ts";
import type { HostedTask, Pushed } from "./hosted-clients.ts";
import { cpuSeconds, type Helper, type Server } from "./lab.ts";
import { alternate, median, noisyVerdict, times, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

/** A registry and the folder of what it stores. */
interface Store {
  server: Server;
  root: string;
}

interface Pair extends AsyncDisposable {
  entrepot: Store;
  peer: Store;
  ask(task: HostedTask): Promise<Pushed>;
}

async function startPair({ lab, upstream }: Bench): Promise<Pair> {
  await using stack = new AsyncDisposableStack();
  const [entrepotRoot, peerRoot] = [await lab.newFolder("entrepot"), await lab.newFolder("docker-registry")];
  const entrepot = { server: stack.use(await lab.startEntrepot(upstream.port, entrepotRoot)), root: entrepotRoot };
  const peer = { server: stack.use(await lab.startDockerRegistry(undefined, peerRoot)), root: peerRoot };
  const client: Helper = stack.use(lab.startHelper("./hosted-clients.ts"));
  const owned = stack.move();
  return {
    entrepot,
    peer,
    ask: (task) => client.ask<Pushed>(task),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

export async function pushLayerRow(bench: Bench): Promise<Line[]> {
  await using pair = await startPair(bench);
  const layerBytes = (bench.quick ? 32 : 160) * MIB;
  const lines: Line[] = [];
  for (const clients of [1, 8]) {
    const layersEach = clients === 1 ? 3 : 1;
    const work = `push of a ${layerBytes / MIB} MiB layer, ${clients} client${clients === 1 ? "" : "s"}`;
    bench.progress(work);
    const cpu: Record<string, number[]> = { entrepot: [], peer: [] };
    const measure = (name: "entrepot" | "peer") => async () => {
      const { server, root } = pair[name];
      const { pid, port } = server;
      const bytes = clients * layersEach * layerBytes;
      await pair.ask({ kind: "make-layers", count: clients * layersEach, layerBytes });
      const spent = await filesOf(layerBytes, root);
      const before = await cpuSeconds(pid);
      const { ms } = await pair.ask({ kind: "layers", port, clients, layersEach, spent });
      cpu[name]?.push(((await cpuSeconds(pid)) - before) / (bytes / GIB));
      return (bytes / ms) * 1000;
    };
    const measures = { entrepot: measure("entrepot"), peer: measure("peer") };
    await alternate(1, measures);
    for (const samples of Object.values(cpu)) samples.length = 0;
    const speed = await alternate(bench.quick ? 1 : 5, measures);
    lines.push(...layerLines(bench, work, speed, cpu));
  }
  return lines;
}

function layerLines(bench: Bench, work: string, speed: Line["samples"], cpu: Line["samples"]): Line[] {
  const of = (samples: Line["samples"], name: string): number => median(samples[name] ?? []);
  const faster = of(speed, "entrepot") / of(speed, "peer");
  const cheaper = of(cpu, "entrepot") / of(cpu, "peer");
  return [
    {
      work,
      entrepot: `${whole(of(speed, "entrepot") / MIB)} MiB/s`,
      peer: `${whole(of(speed, "peer") / MIB)} MiB/s`,
      result: times(faster),
      target: "≥ 1.0 ×",
      verdict: noisyVerdict(bench, faster >= 1),
      samples: speed,
    },
    {
      work: `${work}: CPU`,
      entrepot: `${of(cpu, "entrepot").toFixed(2)} s/GiB`,
      peer: `${of(cpu, "peer").toFixed(2)} s/GiB`,
      result: times(cheaper),
      target: "≤ 0.6 ×",
      verdict: noisyVerdict(bench, cheaper <= 0.6),
      samples: cpu,
    },
  ];
}

/**
 * The registry's layers of the round before, which nobody asks for again: while new ones are pushed they go, so that the file system's cache has
 * as much memory at any time, as on a server that has run for long. With plenty of it free, the first to use it would pay: a virtual
 * machine fetches it from its host, at five times the cost of filling it.
 */
async function filesOf(sizeBytes: number, root: string): Promise<string[]> {
  const found = [];
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    // docker-registry calls every blob `data`.
    if (!entry.isFile() || !/^(?:data|[0-9a-f]{64})$/.test(entry.name)) continue;
    const path = join(entry.parentPath, entry.name);
    if ((await stat(path)).size === sizeBytes) found.push(path);
  }
  return found;
}

const CLIENTS = 16;
/** The config and two layers. */
const BLOB_BYTES = [1024, 4096, 4096];

export async function pushImageRow(bench: Bench): Promise<Line[]> {
  await using pair = await startPair(bench);
  const work = `push of a small image (3 blobs, 1 manifest), ${CLIENTS} clients`;
  const measure =
    ({ server: { port } }: Store, ms: number) =>
    async () => {
      const pushed = await pair.ask({ kind: "images", port, clients: CLIENTS, blobBytes: BLOB_BYTES, ms });
      return (pushed.count / pushed.ms) * 1000;
    };
  const measures = (ms: number) => ({ entrepot: measure(pair.entrepot, ms), peer: measure(pair.peer, ms) });
  bench.progress(`${work}: warming up`);
  await alternate(1, measures(bench.quick ? 1_000 : 3_000));
  bench.progress(work);
  const samples = await alternate(bench.quick ? 1 : 5, measures(bench.quick ? 1_000 : 3_000));
  const [own, peer] = [median(samples.entrepot), median(samples.peer)];
  return [
    {
      work,
      entrepot: `${whole(own)} images/s`,
      peer: `${whole(peer)} images/s`,
      result: times(own / peer),
      target: "≥ 3 ×",
      verdict: noisyVerdict(bench, own / peer >= 3),
      samples,
    },
  ];
}
