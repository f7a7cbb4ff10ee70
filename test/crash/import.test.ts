import assert from "node:assert/strict";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import Sqlite from "better-sqlite3";
import { hexOf, type Digest } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { until } from "../kit/registry.ts";
import { sourceFolder } from "../moving/imports.ts";
import { startDaemon, type Daemon } from "./daemon.ts";

const IMAGES = 550;
const CONFIG = { upstreams: { "docker.io": { url: "http://127.0.0.1:9" } } };
const HEADERS = { "content-type": "application/json" };

/** What has to be there first for the daemon to be killed then. */
const MOMENTS: Record<string, (root: string) => Promise<boolean>> = {
  "the first files": async (root) => (await blobFiles(root)) > 0,
  "the first rows of blobs": async (root) => count(root, "blobs") > 0,
  "the first manifests": async (root) => count(root, "manifests") > 0,
  "the first tags": async (root) => count(root, "tags") > 0,
};

test("killed in the middle of an import, all that is visible is whole, and the next run brings the rest", async () => {
  await using source = await sourceFolder();
  for (let at = 0; at < IMAGES; at++) {
    const image = makeImage({ layers: [Buffer.from(`layer ${at}`)], seed: at });
    await source.image(`team/app-${at % 7}`, image, `v${at}`);
  }
  for (const [moment, isReached] of Object.entries(MOMENTS)) {
    const root = await mkdtemp(join(tmpdir(), "entrepot-killed-"));
    try {
      {
        await using daemon = await startDaemon({ root, config: CONFIG });
        const asked = ask(daemon, source.path).catch(() => undefined);
        await until(() => isReached(root), moment);
        await daemon.kill();
        await asked;
      }
      await assertWhole(root, moment);
      await using daemon = await startDaemon({ root, config: CONFIG });
      // What was running when it was killed may be begun anew by the daemon itself.
      await until(async () => (await ask(daemon, source.path))?.["type"] === "done", "an import came to its end");
      assert.equal(count(root, "tags"), IMAGES, moment);
      await assertWhole(root, moment);
      const scrub = await fetch(`${daemon.url}/api/v1/scrub`, { method: "POST", headers: HEADERS, body: "{}" });
      const told = (await scrub.text()).trimEnd().split("\n");
      const done = JSON.parse(told.at(-1) ?? "") as Record<string, unknown>;
      assert.deepEqual([done["type"], done["findings"], done["tags"]], ["done", 0, IMAGES], moment);
    } finally {
      await rm(root, { recursive: true, force: true });
    }
  }
});

/** @returns the last event; undefined while another import runs */
async function ask(daemon: Daemon, path: string): Promise<Record<string, unknown> | undefined> {
  const answer = await fetch(`${daemon.url}/api/v1/import`, {
    method: "POST",
    headers: HEADERS,
    body: JSON.stringify({ path, deferVerification: true }),
  });
  const text = await answer.text();
  if (answer.status === 409) return undefined;
  assert.equal(answer.status, 200, text);
  const last = JSON.parse(text.trimEnd().split("\n").at(-1) ?? "") as Record<string, unknown>;
  assert.deepEqual([last["type"], last["leftOut"]], ["done", 0], text);
  return last;
}

async function blobFiles(root: string): Promise<number> {
  const found = await readdir(join(root, "blobs/sha256"), { recursive: true, withFileTypes: true });
  return found.filter((entry) => entry.isFile()).length;
}

function count(root: string, table: "blobs" | "manifests" | "tags"): number {
  const db = new Sqlite(join(root, "entrepot.db"), { readonly: true, timeout: 5000 });
  try {
    return (db.prepare(`SELECT count(*) AS rows FROM ${table}`).get() as { rows: number }).rows;
  } finally {
    db.close();
  }
}

/** Tags lead to manifests, manifests to blobs, blobs to files; and each repository reaches what it shows. */
async function assertWhole(root: string, moment: string): Promise<void> {
  const db = new Sqlite(join(root, "entrepot.db"), { timeout: 5000 });
  try {
    const held = `(SELECT 1 FROM repository_content c WHERE c.repository_id = r.id AND c.digest`;
    const dangling = db
      .prepare(
        `SELECT t.name FROM tags t JOIN repositories r ON r.id = t.repository_id
         WHERE NOT EXISTS ${held} = t.digest) OR NOT EXISTS (SELECT 1 FROM manifests m WHERE m.digest = t.digest)
         UNION ALL
         SELECT e.child FROM manifest_children e JOIN repository_content p ON p.digest = e.parent JOIN repositories r ON r.id = p.repository_id
         WHERE NOT EXISTS ${held} = e.child) OR NOT EXISTS (SELECT 1 FROM blobs b WHERE b.digest = e.child)`,
      )
      .all();
    assert.deepEqual(dangling, [], moment);
    for (const { digest, size } of db.prepare("SELECT digest, size FROM blobs").all() as {
      digest: Digest;
      size: number;
    }[]) {
      const hex = hexOf(digest);
      assert.equal((await stat(join(root, "blobs/sha256", hex.slice(0, 2), hex))).size, size, `${moment}: ${digest}`);
    }
  } finally {
    db.close();
  }
}
