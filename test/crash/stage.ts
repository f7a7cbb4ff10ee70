import assert from "node:assert/strict";
import { mkdtempDisposable, readdir, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Sqlite from "better-sqlite3";
import type { Content, Published } from "../kit/images.ts";
import { PushClient, type Session } from "./client.ts";
import { startDaemon, type Daemon, type DaemonOptions, type Tree } from "./daemon.ts";

export const MIB = 1024 * 1024;

/** A storage, on which one daemon after the other runs. */
export interface Storage extends AsyncDisposable {
  readonly root: string;
}

export async function makeStorage(): Promise<Storage> {
  const folder = await mkdtempDisposable(join(tmpdir(), "entrepot-crash-"));
  return { root: join(folder.path, "data"), [Symbol.asyncDispose]: () => folder.remove() };
}

/** A private registry that keeps nothing that nothing refers to longer than it must. */
export const PRIVATE: Tree = {
  upstreams: {},
  hosted: { namespaces: ["team"] },
  gc: { grace: "0s", interval: "0s" },
  scrub: { interval: "0s", bandwidth: "1GiB" },
};

/** A daemon and a client of it. Disposing of them kills the daemon. */
export interface Running extends AsyncDisposable {
  readonly daemon: Daemon;
  readonly client: PushClient;
}

export async function run(root: string, options: Partial<DaemonOptions> = {}): Promise<Running> {
  const daemon = await startDaemon({ root, config: PRIVATE, ...options });
  const client = new PushClient(daemon.url);
  return {
    daemon,
    client,
    [Symbol.asyncDispose]: async () => {
      await client[Symbol.asyncDispose]();
      await daemon.kill();
    },
  };
}

export function blobPath(root: string, digest: string): string {
  const [algorithm = "", hex = ""] = digest.split(":");
  return join(root, "blobs", algorithm, hex.slice(0, 2), hex);
}

/** Digests of the files under blobs/. */
export async function storedDigests(root: string): Promise<string[]> {
  const digests = [];
  for (const algorithm of ["sha256", "sha512"]) {
    const files = await readdir(join(root, "blobs", algorithm), { recursive: true, withFileTypes: true });
    digests.push(...files.filter((file) => file.isFile()).map(({ name }) => `${algorithm}:${name}`));
  }
  return digests;
}

/** Where the bytes of a session lie. */
export function uploadPath(root: string, session: Session): string {
  return join(root, "uploads", new URL(session.location, "http://registry").pathname.split("/").at(-1) ?? "");
}

export async function sizeOf(file: string): Promise<number> {
  return (await stat(file).catch(() => ({ size: 0 }))).size;
}

/** The database, read beside the daemon that writes it. */
export class Metadata implements Disposable {
  readonly #db: Sqlite.Database;

  constructor(root: string) {
    this.#db = new Sqlite(join(root, "entrepot.db"), { readonly: true });
  }

  column(sql: string): unknown[] {
    return this.#db.prepare<[]>(sql).pluck().all();
  }

  pairs(sql: string): [unknown, unknown][] {
    return this.#db.prepare<[], [unknown, unknown]>(sql).raw().all();
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }
}

/** The repository has the blob, and it is the right one. */
export async function assertBlob(client: PushClient, repository: string, content: Content): Promise<void> {
  const answer = await client.get(`/v2/${repository}/blobs/${content.digest}`);
  assert.equal(answer.status, 200, `${content.digest}: ${answer.bytes.subarray(0, 500).toString()}`);
  assert.ok(answer.bytes.equals(content.bytes), `wrong bytes of ${content.digest}`);
}

/** The repository has the manifest under a tag or digest, and all its blobs. */
export async function assertImage(
  client: PushClient,
  repository: string,
  reference: string,
  image: Published & { blobs: Map<string, Content> },
): Promise<void> {
  const answer = await client.get(`/v2/${repository}/manifests/${reference}`);
  assert.equal(answer.status, 200, `${repository} ${reference}: ${answer.bytes.toString()}`);
  assert.equal(answer.headers["docker-content-digest"], image.digest);
  assert.deepEqual(answer.bytes, image.manifest);
  for (const content of image.blobs.values()) await assertBlob(client, repository, content);
}

/** The database is sound, and `scrub` finds nothing wrong. */
export async function assertSound(client: PushClient, root: string): Promise<void> {
  using metadata = new Metadata(root);
  assert.deepEqual(metadata.column("PRAGMA integrity_check"), ["ok"]);
  assert.deepEqual(metadata.column("PRAGMA foreign_key_check"), []);
  for (const [digest, sizeBytes] of metadata.pairs("SELECT digest, size FROM blobs")) {
    assert.equal(await sizeOf(blobPath(root, String(digest))), sizeBytes, `the file of ${String(digest)}`);
  }
  const events = await client.run("scrub");
  assert.deepEqual(
    events?.filter(({ type }) => type === "finding"),
    [],
  );
}
