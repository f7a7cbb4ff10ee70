/** Pages of long lists. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { digestNamed, fillDatabase, NAMESPACE } from "./fill.ts";
import type { HostedTask } from "./hosted-clients.ts";
import { noisyVerdict, percentile, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const PAGE = 100;
const P99_MS = 10;
const PAGES = 2_000;
const WARM_UP_PAGES = 200;

/** A list of so many names, in order. */
interface Listing {
  work: string;
  names: string[];
  /** Of a page that begins after that name. */
  path: (last: string) => string;
  fillEntrepot: (root: string) => void;
  /** The folder that docker-registry reads a name from. */
  peerFolder: (name: string) => string;
  /** docker-registry reads all names for every page. */
  peerPages: number;
}

export async function tagsRow(bench: Bench): Promise<Line[]> {
  const count = bench.quick ? 20_000 : 100_000;
  const repository = `${NAMESPACE}/tags`;
  const names = Array.from({ length: count }, (_, i) => `build-${String(i).padStart(6, "0")}`);
  return listingRow(bench, {
    work: `tag list of a repository with ${whole(count)} tags, page of ${PAGE} at any place`,
    names,
    path: (last) => `/v2/${repository}/tags/list?n=${PAGE}&last=${last}`,
    fillEntrepot: (root) => fillRepositories(root, [repository], names),
    peerFolder: (name) => `${repository}/_manifests/tags/${name}`,
    peerPages: 10,
  });
}

export async function catalogRow(bench: Bench): Promise<Line[]> {
  const count = bench.quick ? 20_000 : 100_000;
  const names = Array.from({ length: count }, (_, i) => `${NAMESPACE}/app-${String(i).padStart(6, "0")}`);
  return listingRow(bench, {
    work: `catalog page of ${PAGE} with ${whole(count)} repositories`,
    names,
    path: (last) => `/v2/_catalog?n=${PAGE}&last=${encodeURIComponent(last)}`,
    fillEntrepot: (root) => fillRepositories(root, names, ["latest"]),
    peerFolder: (name) => `${name}/_layers`,
    peerPages: 3,
  });
}

/** Each with the same manifest under each of the tags. */
function fillRepositories(root: string, repositories: string[], tags: string[]): void {
  fillDatabase(root, (into) => {
    const bytes = Buffer.from("{}");
    const digest = digestNamed("{}");
    into("namespaces (name, created_at)")({ name: NAMESPACE, created_at: 0 });
    const manifests = "manifests (digest, media_type, size, bytes, created_at, used_at)";
    into(manifests)({ digest, media_type: "application/json", size: 2, bytes, created_at: 0, used_at: 0 });
    const addRepository = into("repositories (id, name, created_at)");
    const addContent = into("repository_content (repository_id, digest, linked_at)");
    const addTag = into("tags (repository_id, name, digest, updated_at, checked_at)");
    for (const [index, name] of repositories.entries()) {
      const id = index + 1;
      addRepository({ id, name, created_at: 0 });
      addContent({ repository_id: id, digest, linked_at: 0 });
      for (const tag of tags) addTag({ repository_id: id, name: tag, digest, updated_at: 0, checked_at: 0 });
    }
  });
}

async function listingRow(bench: Bench, listing: Listing): Promise<Line[]> {
  const { lab, upstream, progress } = bench;
  const { work, names, path } = listing;
  const [entrepotRoot, peerRoot] = [await lab.newFolder("entrepot"), await lab.newFolder("docker-registry")];
  // The daemon makes the schema itself.
  await (await lab.startEntrepot(upstream.port, entrepotRoot))[Symbol.asyncDispose]();
  progress("filling Entrepot");
  listing.fillEntrepot(entrepotRoot);
  progress("filling docker-registry");
  const folders = join(peerRoot, "docker/registry/v2/repositories");
  for (const name of names) mkdirSync(join(folders, listing.peerFolder(name)), { recursive: true });

  await using entrepot = await lab.startEntrepot(upstream.port, entrepotRoot);
  await using peer = await lab.startDockerRegistry(undefined, peerRoot);
  await using client = lab.startHelper("./hosted-clients.ts");
  const ask = (task: HostedTask): Promise<number[]> => client.ask<number[]>(task);
  // Any place that a whole page follows.
  const paths = (count: number): string[] =>
    Array.from({ length: count }, () => path(names[Math.floor(Math.random() * (names.length - PAGE))] ?? ""));
  progress(work);
  await ask({ kind: "pages", port: entrepot.port, paths: paths(WARM_UP_PAGES), names: PAGE });
  const own = await ask({ kind: "pages", port: entrepot.port, paths: paths(PAGES), names: PAGE });
  const theirs = await ask({ kind: "pages", port: peer.port, paths: paths(listing.peerPages) });
  const p99 = percentile(own, 0.99);
  return [
    {
      work,
      entrepot: `p99 ${p99.toFixed(1)} ms`,
      peer: `median ${whole(percentile(theirs, 0.5))} ms`,
      result: `p99 ${p99.toFixed(1)} ms`,
      target: `p99 < ${P99_MS} ms`,
      verdict: noisyVerdict(bench, p99 < P99_MS),
      samples: { entrepot: own, peer: theirs },
    },
  ];
}
