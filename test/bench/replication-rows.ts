/** Copies between two registries that are far away, beside `skopeo sync` and `regsync`. */
import { entrepotTool, regsyncTool, skopeoTool, type CopyTool } from "./copy-tools.ts";
import { makeImage, virtualBlob, type Image } from "../kit/images.ts";
import { MIB, push } from "./content.ts";
import type { Carried } from "./far-line.ts";
import { BYTES_PER_SECOND, ROUND_TRIP_MS, startWay, type Way } from "./far-way.ts";
import type { Server } from "./lab.ts";
import { median, noisyVerdict, times, verdict, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const BASE_LAYERS_BYTES = [32 * MIB, 16 * MIB, 8 * MIB, 4 * MIB];
const OWN_LAYERS_BYTES = [3 * MIB, MIB / 2, 16 * 1024];
const NOT_RUN = "NOT RUN";

/** What one run of a tool took. */
interface Took {
  ms: number;
  /** Both ways, on both lines. */
  bytes: number;
  requests: number;
}

async function measure(work: () => Promise<number>, ways: readonly Way[]): Promise<Took> {
  const before = await carriedBy(ways);
  const ms = await work();
  const after = await carriedBy(ways);
  return { ms, bytes: after.bytes - before.bytes, requests: after.requests - before.requests };
}

async function carriedBy(ways: readonly Way[]): Promise<Carried> {
  const all = await Promise.all(ways.map((way) => way.carried()));
  return {
    bytes: all.reduce((sum, { bytes }) => sum + bytes, 0),
    requests: all.reduce((sum, { requests }) => sum + requests, 0),
  };
}

type ToolName = "entrepot" | "skopeo" | "regsync";

async function toolsOf({ lab, progress }: Bench): Promise<[ToolName, CopyTool][]> {
  progress("building regsync, unless it was built before");
  const tools: [ToolName, CopyTool | undefined][] = [
    ["entrepot", entrepotTool(lab)],
    ["skopeo", skopeoTool(lab)],
    ["regsync", await regsyncTool(lab)],
  ];
  return tools.filter((one): one is [ToolName, CopyTool] => one[1] !== undefined);
}

/** Twenty applications on one base, each in a repository of its own, to a registry that has nothing. */
export async function firstCopyRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const images = quick ? 6 : 20;
  progress(`pushing ${images} images`);
  const repositories = await pushApplications(upstream, images);
  await using source = await startWay(lab, upstream.port);
  const tools = await toolsOf(bench);
  const took: Partial<Record<ToolName, Took[]>> = {};
  for (let round = 0; round < (quick ? 1 : 3); round++) {
    for (const [name, copy] of tools) {
      progress(`${name}, round ${round + 1}`);
      await using registry = await lab.startDockerRegistry();
      await using target = await startWay(lab, registry.port);
      const work = { fromPort: source.port, toPort: target.port, repositories };
      (took[name] ??= []).push(await measure(() => copy(work), [source, target]));
      await checkCopies(registry, repositories);
    }
  }
  const work = `first copy of ${images} images on one base, ${ROUND_TRIP_MS} ms and ${BYTES_PER_SECOND / MIB} MiB/s a connection`;
  const samples = (key: keyof Took) =>
    Object.fromEntries(Object.entries(took).map(([name, runs]) => [name, runs.map((run) => run[key])]));
  const ms = samples("ms");
  const [own, skopeo, regsync] = [ms["entrepot"], ms["skopeo"], ms["regsync"]].map((runs) => runs && median(runs));
  if (own === undefined) throw new Error("nothing was measured");
  const seconds = (value: number | undefined): string =>
    value === undefined ? NOT_RUN : `${(value / 1000).toFixed(2)} s`;
  const ratio = (value: number | undefined): string => (value === undefined ? NOT_RUN : times(value / own));
  const bytes = samples("bytes");
  const [ownBytes, ...peerBytes] = [bytes["entrepot"], bytes["skopeo"], bytes["regsync"]].map(
    (runs) => runs && median(runs),
  );
  const mib = (value: number | undefined): string =>
    value === undefined ? NOT_RUN : `${(value / MIB).toFixed(1)} MiB`;
  return [
    {
      work,
      entrepot: seconds(own),
      peer: `skopeo ${seconds(skopeo)}, regsync ${seconds(regsync)}`,
      result: `${ratio(skopeo)} skopeo, ${ratio(regsync)} regsync`,
      target: "≥ 3 ×, ≥ 1.5 ×",
      verdict: noisyVerdict(bench, (skopeo ?? Infinity) / own >= 3 && (regsync ?? Infinity) / own >= 1.5),
      samples: ms,
    },
    {
      work: `${work}: bytes on both lines`,
      entrepot: mib(ownBytes),
      peer: `skopeo ${mib(peerBytes[0])}, regsync ${mib(peerBytes[1])}`,
      result: mib(ownBytes),
      target: "fewer than both",
      verdict: verdict(peerBytes.every((peer) => peer === undefined || (ownBytes ?? Infinity) < peer)),
      samples: bytes,
    },
    {
      work: `${work}: requests`,
      entrepot: whole(median(samples("requests")["entrepot"] ?? [])),
      peer: `skopeo ${requestsText(took.skopeo)}, regsync ${requestsText(took.regsync)}`,
      result: whole(median(samples("requests")["entrepot"] ?? [])),
      target: "–",
      verdict: "not judged",
      samples: samples("requests"),
    },
  ];
}

function requestsText(runs: Took[] | undefined): string {
  return runs ? whole(median(runs.map(({ requests }) => requests))) : NOT_RUN;
}

/** @returns their repositories */
async function pushApplications(registry: Server, count: number): Promise<string[]> {
  const base = BASE_LAYERS_BYTES.map((sizeBytes, index) => virtualBlob(sizeBytes, `base ${index}`));
  const names: string[] = [];
  for (let index = 0; index < count; index++) {
    const name = `bench/app-${index}`;
    const own = OWN_LAYERS_BYTES.map((sizeBytes, layer) => virtualBlob(sizeBytes, `own ${index} ${layer}`));
    await push(registry, name, "1.0", makeImage({ layers: [...base, ...own], seed: name }));
    names.push(name);
  }
  return names;
}

/** A repository of which nothing has changed. */
export async function unchangedRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const many = quick ? 200 : 1000;
  // For skopeo, which takes a third of a second for each.
  const few = quick ? 20 : 100;
  await using registry = await lab.startDockerRegistry();
  progress(`pushing ${many} tags to both`);
  for (const [name, tags] of [
    ["many", many],
    ["few", few],
  ] as const) {
    await pushTags(upstream, name, tags);
    await pushTags(registry, `mirror/${name}`, tags);
  }
  await using source = await startWay(lab, upstream.port);
  await using target = await startWay(lab, registry.port);
  const work = (name: string) => ({ fromPort: source.port, toPort: target.port, repositories: [name] });
  const took: Partial<Record<ToolName, { ms: number; requests: number }>> = {};
  for (const [name, copy] of await toolsOf(bench)) {
    progress(name);
    const tags = name === "skopeo" ? few : many;
    const { ms, requests } = await measure(() => copy(work(tags === many ? "many" : "few")), [source, target]);
    took[name] = { ms: (ms * many) / tags, requests: (requests * many) / tags };
  }
  const { entrepot: own, skopeo, regsync } = took;
  if (!own) throw new Error("nothing was measured");
  const text = (one: { ms: number; requests: number } | undefined): string =>
    one ? `${(one.ms / 1000).toFixed(1)} s, ${whole(one.requests)} requests` : NOT_RUN;
  const faster = (skopeo?.ms ?? Infinity) / own.ms;
  return [
    {
      work: `nothing changed, ${whole(many)} tags, ${ROUND_TRIP_MS} ms`,
      entrepot: text(own),
      peer: `skopeo, from ${few} tags, ${text(skopeo)}; regsync ${text(regsync)}`,
      result: `${times(faster)} skopeo`,
      // The list of tags is one more.
      target: "≥ 5 ×, ≤ 2 requests a tag, and the list",
      verdict: verdict(own.requests <= 2 * many + 1 && faster >= 5),
      samples: Object.fromEntries(Object.entries(took).map(([name, { ms, requests }]) => [name, [ms, requests]])),
    },
  ];
}

/** Tags of one small image, each with an annotation of its own. */
async function pushTags(registry: Server, repository: string, count: number): Promise<void> {
  const layer = virtualBlob(1024, "layer");
  const image = (nth: number): Image =>
    makeImage({ layers: [layer], seed: repository.split("/").at(-1) ?? "", annotations: { nth: String(nth) } });
  await push(registry, repository, "1.0.0", image(0));
  for (let nth = 1; nth < count; nth++) {
    const { manifest, mediaType } = image(nth);
    const answer = await fetch(`http://127.0.0.1:${registry.port}/v2/${repository}/manifests/1.0.${nth}`, {
      method: "PUT",
      headers: { "content-type": mediaType },
      body: new Uint8Array(manifest),
    });
    await answer.arrayBuffer();
    if (answer.status !== 201) throw new Error(`${repository}:1.0.${nth}: status ${answer.status}`);
  }
}

/** @throws Error where a tool left something out */
async function checkCopies(registry: Server, repositories: readonly string[]): Promise<void> {
  const answer = await fetch(`http://127.0.0.1:${registry.port}/v2/_catalog?n=1000`);
  const { repositories: copies } = (await answer.json()) as { repositories: string[] };
  // skopeo leaves out all of a name but its last part.
  const named = new Set(copies.map((name) => name.split("/").at(-1)));
  for (const name of repositories) {
    if (!named.has(name.split("/").at(-1))) throw new Error(`${name} was not copied`);
  }
}
