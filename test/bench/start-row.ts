import { mkdir, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { digestNamed, fillDatabase } from "./fill.ts";
import { median, noisyVerdict, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const BLOBS = 100_000;
const REPOSITORIES = 500;
const READY_MS = 1_000;
/** Older than what recovery takes for a file whose row is still to come. */
const AGE_SECONDS = 86_400;

/** A daemon that has gathered a lot: from the start of its process to a good answer of /readyz. */
export async function startRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const root = await lab.newFolder("filled");
  // The daemon makes the schema itself.
  await (await lab.startEntrepot(upstream.port, root))[Symbol.asyncDispose]();
  progress(`writing ${whole(BLOBS)} blobs`);
  await fill(root);
  progress("starting");
  const ready: number[] = [];
  for (let round = 0; round < (quick ? 3 : 5); round++) {
    await using server = await lab.startEntrepot(upstream.port, root);
    ready.push(server.readyMs);
  }
  const ms = median(ready);
  return [
    {
      work: `start with ${whole(BLOBS)} cached blobs`,
      entrepot: `ready in ${whole(ms)} ms`,
      peer: "–",
      result: `${whole(ms)} ms`,
      target: "< 1 s",
      verdict: noisyVerdict(bench, ms < READY_MS),
      samples: { ready },
    },
  ];
}

/** Rows of blobs and of who may reach them, and an empty file for each: recovery walks the tree. */
async function fill(root: string): Promise<void> {
  const digests = Array.from({ length: BLOBS }, (_, i) => digestNamed(String(i)));
  const upstream = "docker.io";
  fillDatabase(root, (into) => {
    const addRepository = into("repositories (id, name, upstream, created_at)");
    for (let id = 1; id <= REPOSITORIES; id++)
      addRepository({ id, name: `docker.io/library/app-${id}`, upstream, created_at: 0 });
    const addBlob = into("blobs (digest, size, upstream, created_at, used_at)");
    const addContent = into("repository_content (repository_id, digest, linked_at)");
    for (const [i, digest] of digests.entries()) {
      addBlob({ digest, size: 1000, upstream, created_at: 0, used_at: i });
      addContent({ repository_id: 1 + (i % REPOSITORIES), digest, linked_at: 0 });
    }
  });
  const old = Date.now() / 1000 - AGE_SECONDS;
  const hexes = digests.map((digest) => digest.slice("sha256:".length));
  const folders = Map.groupBy(hexes, (hex) => join(root, "blobs", "sha256", hex.slice(0, 2)));
  for (const [folder, names] of folders) {
    await mkdir(folder, { recursive: true });
    await Promise.all(
      names.map(async (name) => {
        await writeFile(join(folder, name), "");
        await utimes(join(folder, name), old, old);
      }),
    );
  }
}
