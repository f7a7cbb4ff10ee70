import { createHash } from "node:crypto";
import { mkdir, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { openSqlite } from "../../src/db/sqlite.ts";
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
  const hexes = Array.from({ length: BLOBS }, (_, i) => createHash("sha256").update(String(i)).digest("hex"));
  await using db = await openSqlite(join(root, "entrepot.db"));
  await db.transaction("lazy", async (tx) => {
    const upstream = "docker.io";
    for (let id = 1; id <= REPOSITORIES; id++) {
      await tx.run("INSERT INTO repositories (id, name, upstream, created_at) VALUES (:id, :name, :upstream, 0)", {
        id,
        name: `docker.io/library/app-${id}`,
        upstream,
      });
    }
    for (const [i, hex] of hexes.entries()) {
      const digest = `sha256:${hex}`;
      await tx.run(
        "INSERT INTO blobs (digest, size, upstream, created_at, used_at) VALUES (:digest, 1000, :upstream, 0, :i)",
        {
          digest,
          upstream,
          i,
        },
      );
      const repository = 1 + (i % REPOSITORIES);
      await tx.run("INSERT INTO repository_content (repository_id, digest) VALUES (:repository, :digest)", {
        repository,
        digest,
      });
    }
  });
  const old = Date.now() / 1000 - AGE_SECONDS;
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
