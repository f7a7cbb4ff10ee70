/** Garbage collection of a large registry while images are pulled from it. */
import { mkdirSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Sqlite from "better-sqlite3";
import { digestNamed, fillDatabase, NAMESPACE } from "./fill.ts";
import type { HostedTask, Paced, Pushed } from "./hosted-clients.ts";
import { noisyVerdict, percentile, times, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const REPOSITORIES = 500;
const CHILDREN = 100;
const PULLS_PER_SECOND = 200;
/** Of images that are there: a config of 1 KiB and a layer of 64 KiB. */
const PULLED = { clients: 10, imagesEach: 50 };
const PULLED_BYTES = [1024, 64 * 1024];
/** Before and after the collection. */
const QUIET_MS = 10_000;

export async function gcRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const sizes = quick ? { live: 90_000, garbage: 10_000 } : { live: 900_000, garbage: 100_000 };
  const root = await lab.newFolder("entrepot");
  await (await lab.startEntrepot(upstream.port, root))[Symbol.asyncDispose]();
  progress(`writing ${whole(sizes.live)} live blobs and ${whole(sizes.garbage)} of garbage`);
  fillLive(root, sizes.live);
  fillGarbage(root, sizes.garbage);
  await using server = await lab.startEntrepot(upstream.port, root);
  await using client = lab.startHelper("./hosted-clients.ts");
  const { port } = server;
  await client.ask<Pushed>({ kind: "images", port, ...PULLED, blobBytes: PULLED_BYTES });
  const pull = (until: { ms: number } | { post: string }): Promise<Paced> => {
    const task: HostedTask = { kind: "paced", port, ...PULLED, perSecond: PULLS_PER_SECOND, until };
    return client.ask<Paced>(task);
  };
  const quietMs = quick ? QUIET_MS / 5 : QUIET_MS;
  progress("pulling, collecting, pulling");
  const before = await pull({ ms: quietMs });
  const during = await pull({ post: "/api/v1/gc" });
  const after = await pull({ ms: quietMs });
  progress(`${during.ms.length} pulls during the collection: ${during.report}`);
  const left = garbageLeft(root);
  if (left > 0) throw new Error(`${left} blobs of garbage are left: ${during.report}`);

  const without = percentile([...before.ms, ...after.ms], 0.99);
  const p99 = percentile(during.ms, 0.99);
  return [
    {
      work: `GC over ${whole(sizes.live + sizes.garbage)} blob rows with ${whole(sizes.garbage)} of garbage, ${PULLS_PER_SECOND} pulls a second`,
      entrepot: `p99 of pulls ${p99.toFixed(1)} ms, without ${without.toFixed(1)} ms`,
      peer: "–",
      result: times(p99 / without),
      target: "≤ 2 ×",
      verdict: noisyVerdict(bench, p99 / without <= 2),
      samples: { before: before.ms, during: during.ms, after: after.ms },
    },
  ];
}

/** Blobs that manifests of a hundred need, every manifest under a tag. They have no files: nobody asks for them. */
function fillLive(root: string, count: number): void {
  const digests = Array.from({ length: count }, (_, i) => digestNamed(`live ${i}`)).sort();
  const manifests = Array.from({ length: count / CHILDREN }, (_, i) => digestNamed(`manifest ${i}`)).sort();
  fillDatabase(root, (into) => {
    into("namespaces (name, created_at)")({ name: NAMESPACE, created_at: 0 });
    const addRepository = into("repositories (id, name, created_at)");
    for (let id = 1; id <= REPOSITORIES; id++) addRepository({ id, name: `${NAMESPACE}/filled-${id}`, created_at: 0 });
    const addBlob = into("blobs (digest, size, created_at, used_at)");
    for (const digest of digests) addBlob({ digest, size: 1, created_at: 0, used_at: 0 });
    const addManifest = into("manifests (digest, media_type, size, bytes, created_at, used_at)");
    const addChild = into("manifest_children (parent, child, size)");
    const addTag = into("tags (repository_id, name, digest, updated_at, checked_at)");
    const links: { repository_id: number; digest: string }[] = [];
    for (const [index, digest] of manifests.entries()) {
      const bytes = Buffer.from(`{"manifest":${index}}`);
      addManifest({ digest, media_type: "application/json", size: bytes.length, bytes, created_at: 0, used_at: 0 });
      const repository_id = 1 + (index % REPOSITORIES);
      addTag({ repository_id, name: `t${index}`, digest, updated_at: 0, checked_at: 0 });
      // Every ninetieth of them, so that the blobs of a manifest lie as far apart as those of real ones.
      const children = Array.from({ length: CHILDREN }, (_, i) => digests[index + i * manifests.length] ?? "");
      for (const child of children) addChild({ parent: digest, child, size: 1 });
      for (const linked of [digest, ...children]) links.push({ repository_id, digest: linked });
    }
    fillLinks(into("repository_content (repository_id, digest, linked_at)"), links);
  });
}

/** Blobs that were pushed long ago and that no manifest needs any more, with files of one byte. */
function fillGarbage(root: string, count: number): void {
  const digests = Array.from({ length: count }, (_, i) => digestNamed(`garbage ${i}`)).sort();
  fillDatabase(root, (into) => {
    const addBlob = into("blobs (digest, size, created_at, used_at)");
    for (const digest of digests) addBlob({ digest, size: 1, created_at: 0, used_at: 0 });
    const links = digests.map((digest, index) => ({ repository_id: 1 + (index % REPOSITORIES), digest }));
    fillLinks(into("repository_content (repository_id, digest, linked_at)"), links);
  });
  for (const digest of digests) {
    const hex = digest.slice("sha256:".length);
    const folder = join(root, "blobs/sha256", hex.slice(0, 2));
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, hex), "x");
    utimesSync(join(folder, hex), 0, 0);
  }
}

/** In the order of the table: anything else takes ten times as long. */
function fillLinks(
  add: (row: Record<string, string | number>) => void,
  links: { repository_id: number; digest: string }[],
): void {
  links.sort((a, b) => a.repository_id - b.repository_id || (a.digest < b.digest ? -1 : 1));
  for (const link of links) add({ ...link, linked_at: 0 });
}

function garbageLeft(root: string): number {
  const db = new Sqlite(join(root, "entrepot.db"), { readonly: true });
  const count = db
    .prepare(
      "SELECT count(*) FROM blobs b WHERE NOT EXISTS (SELECT 1 FROM manifest_children e WHERE e.child = b.digest)",
    )
    .pluck()
    .get() as number;
  db.close();
  return count;
}
