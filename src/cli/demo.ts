import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { open } from "../app.ts";
import { createLog } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import { parseConfig } from "../config/load.ts";
import { DemoClient, WrongBytes } from "./demo/client.ts";
import { Story, type Meters } from "./demo/story.ts";
import { DemoUpstream, makeImage, type DemoImage } from "./demo/upstream.ts";
import { bytesText, timeText } from "./format.ts";
import { DONE, FAILED, parseOptions, runCommand, type CommandIo } from "./io.ts";

const USAGE = `Usage: entrepot demo [--json]

Shows what a mirror does, without any network and in about 20 seconds: a registry with generated images, Entrepot before it and
clients that pull, all on loopback and in a temporary folder that is removed at the end. Every byte is checked by its digest.

Exit status: 0 every promise was kept, 1 one was broken or the demo was interrupted, 2 wrong usage.
`;

const MIB = 2 ** 20;
const UPSTREAM_BYTES_PER_SECOND = 8 * MIB;
const TAG_TTL_MS = 2000;
const CLIENTS = 10;
const REPOSITORY = "library/app";

/** `entrepot demo`: the story of a mirror. */
export function runDemo(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values } = parseOptions(args, { json: { type: "boolean", default: false } });
    const interrupted = new AbortController();
    const interrupt = (): void => interrupted.abort(new Error("interrupted"));
    process.once("SIGINT", interrupt);
    process.once("SIGTERM", interrupt);
    try {
      await using stage = await setStage(io, values.json, interrupted.signal);
      const gone = once(interrupted.signal, "abort").then(() => interrupted.signal.throwIfAborted());
      await Promise.race([play(stage), gone]);
      return stage.story.brokenPromises === 0 ? DONE : FAILED;
    } finally {
      process.off("SIGINT", interrupt);
      process.off("SIGTERM", interrupt);
    }
  });
}

interface Stage extends AsyncDisposable {
  upstream: DemoUpstream;
  clients: readonly DemoClient[];
  story: Story;
}

/** The upstream, the mirror before it, and its clients. */
async function setStage(io: CommandIo, json: boolean, signal: AbortSignal): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await mkdtempDisposable(join(tmpdir(), "entrepot-demo-")));
  const upstream = stack.use(new DemoUpstream(UPSTREAM_BYTES_PER_SECOND));
  await upstream.start();
  const config = parseConfig({
    server: { listen: "127.0.0.1:0", drainTimeout: "0s" },
    storage: { root: folder.path, cacheMaxSize: "1GiB", minFree: 0 },
    upstreams: { "docker.io": { url: upstream.url, tagTtl: `${TAG_TTL_MS}ms` } },
  });
  const app = stack.use(await open(config, { log: await createLog({ level: "silent", format: "json" }) }));
  let clientBytes = 0;
  const clients = Array.from({ length: CLIENTS }, () =>
    stack.use(new DemoClient(app.address, (bytes) => (clientBytes += bytes))),
  );
  const meters = (): Meters => ({ upstreamBytes: upstream.sentBytes, clientBytes });
  const story = new Story(io.stdout, json, meters, () => readResults(app.metrics), signal);
  const owned = stack.move();
  return { upstream, clients, story, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function readResults(metrics: Metrics): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const { labels, value } of (await metrics.cacheRequests.get()).values) {
    counts[String(labels.result)] = (counts[String(labels.result)] ?? 0) + value;
  }
  return counts;
}

async function play(stage: Stage): Promise<void> {
  const { story } = stage;
  const startedMs = performance.now();
  story.heading("Entrepot, between ten clients and a registry far away");
  story.say(
    `That registry sends ${bytesText(UPSTREAM_BYTES_PER_SECOND)} a second on each connection. No network is used.`,
  );

  const [large, middle, small] = [32, 6, 2].map((size) => randomBytes(size * MIB)) as [Buffer, Buffer, Buffer];
  const first = makeImage("first", [large, middle, small]);
  await coldPull(stage, first);
  await outage(stage, first);
  await tagMoves(stage, first, makeImage("second", [large, middle, randomBytes(4 * MIB)]));
  await brokenLine(stage);
  await lie(stage);

  story.end(Math.round(performance.now() - startedMs) / 1000);
  story.say("");
  story.say(
    "Now with your own hosts: entrepot serve (or npm start), then curl http://127.0.0.1:5000 says how to point docker at it.",
  );
}

async function coldPull({ upstream, clients, story }: Stage, image: DemoImage): Promise<void> {
  upstream.publish("latest", image);
  await story.act(
    "Ten clients pull the same image at once, and nobody had it",
    `${bytesText(image.sizeBytes)} in three layers. Without a mirror, upstream would send them ten times.`,
    { upstreamBytes: image.sizeBytes, clientBytes: CLIENTS * image.sizeBytes },
    async () => {
      const sentBefore = upstream.sentBytes;
      const pulled = await Promise.all(clients.map((client) => client.pull(REPOSITORY, "latest")));
      const sent = upstream.sentBytes - sentBefore;
      return [
        [pulled.every(({ digest }) => digest === image.digest), "all ten have the whole image, every byte of it right"],
        [
          sent <= image.sizeBytes * 1.01,
          `upstream sent it once: ${bytesText(sent)} instead of ${bytesText(CLIENTS * image.sizeBytes)}`,
        ],
      ];
    },
  );
}

async function outage({ upstream, clients, story }: Stage, image: DemoImage): Promise<void> {
  await delay(TAG_TTL_MS);
  await upstream.stop();
  await story.act(
    "Upstream is down, and two clients pull again",
    "All its connections are cut and its port is closed. What the mirror knows about the tag is out of date by now.",
    { upstreamBytes: 0, clientBytes: 2 * image.sizeBytes },
    async () => {
      const sentBefore = upstream.sentBytes;
      const pulled = await Promise.all(clients.slice(0, 2).map((client) => client.pull(REPOSITORY, "latest")));
      return [
        [pulled.every(({ digest }) => digest === image.digest), "both have the whole image, from the cache alone"],
        [pulled.every(({ warning }) => warning !== undefined), "and were told so: the answers carry a Warning header"],
        [upstream.sentBytes === sentBefore, "upstream sent nothing"],
      ];
    },
  );
  await upstream.start();
}

async function tagMoves(stage: Stage, from: DemoImage, to: DemoImage): Promise<void> {
  const { upstream, clients, story } = stage;
  const [client] = clients as [DemoClient];
  const news =
    to.sizeBytes - [...to.blobs].reduce((sum, [digest, { length }]) => sum + (from.blobs.has(digest) ? length : 0), 0);
  await story.act(
    "Upstream is back, and moves the tag to a new image",
    `Two of its three layers are old. A tag is believed for ${timeText(TAG_TTL_MS)} here (tagTtl; 5 minutes by default).`,
    { upstreamBytes: news, clientBytes: to.sizeBytes },
    async () => {
      await client.head(REPOSITORY, "latest");
      upstream.publish("latest", to);
      const sentBefore = upstream.sentBytes;
      const movedMs = performance.now();
      // A new tag has to be seen within its tagTtl and a round trip; ten seconds are for a busy machine.
      while ((await client.head(REPOSITORY, "latest")) !== to.digest && performance.now() < movedMs + 10_000)
        await delay(50);
      const seenMs = performance.now() - movedMs;
      const { digest } = await client.pull(REPOSITORY, "latest");
      const sent = upstream.sentBytes - sentBefore;
      return [
        [
          digest === to.digest,
          `after ${timeText(seenMs)} the tag went ${from.digest.slice(0, 15)}… → ${to.digest.slice(0, 15)}…`,
        ],
        [sent <= news * 1.01, `only what is new was fetched: ${bytesText(sent)} of ${bytesText(to.sizeBytes)}`],
      ];
    },
  );
}

async function brokenLine({ upstream, clients, story }: Stage): Promise<void> {
  const [client] = clients as [DemoClient];
  const layer = randomBytes(32 * MIB);
  const image = makeImage("resumed", [layer]);
  const [digest] = [...image.blobs].flatMap(([digest, bytes]) => (bytes.length === layer.length ? [digest] : []));
  upstream.publish("resumed", image);
  await story.act(
    "The line breaks in the middle of a layer",
    `After 20 of ${bytesText(layer.length)}, upstream cuts every connection.`,
    { upstreamBytes: image.sizeBytes, clientBytes: image.sizeBytes },
    async () => {
      if (digest) upstream.mishap = { digest, afterBytes: 20 * MIB, what: "break" };
      const sentBefore = upstream.sentBytes;
      const pulled = await client.pull(REPOSITORY, "resumed");
      const again = upstream.sentBytes - sentBefore - image.sizeBytes;
      return [
        [
          upstream.mishap === undefined && pulled.digest === image.digest,
          "the client has the whole image and noticed nothing",
        ],
        [again < 10 * MIB, `the download went on where it broke: ${bytesText(Math.max(0, again))} came twice`],
      ];
    },
  );
}

async function lie({ upstream, clients, story }: Stage): Promise<void> {
  const [client] = clients as [DemoClient];
  const layer = randomBytes(6 * MIB);
  const image = makeImage("honest", [layer]);
  const [digest] = [...image.blobs].flatMap(([digest, bytes]) => (bytes.length === layer.length ? [digest] : []));
  upstream.publish("honest", image);
  await story.act(
    "Upstream sends one wrong bit",
    "A client may have to ask again, as docker does. It must never be told that wrong bytes are complete.",
    { upstreamBytes: 2 * image.sizeBytes, clientBytes: 2 * image.sizeBytes },
    async () => {
      if (digest) upstream.mishap = { digest, afterBytes: 3 * MIB, what: "lie" };
      const failure = await client.pull(REPOSITORY, "honest").then(
        () => undefined,
        (error: unknown) => error,
      );
      const pulled = await client.pull(REPOSITORY, "honest");
      return [
        [
          upstream.mishap === undefined && !(failure instanceof WrongBytes),
          failure === undefined
            ? "the mirror noticed in time, and fetched it again"
            : "the mirror noticed, and broke the answer off before its end",
        ],
        [pulled.digest === image.digest, "the next pull is right: nothing wrong was stored"],
      ];
    },
  );
}
