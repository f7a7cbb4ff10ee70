import assert from "node:assert/strict";
import Sqlite from "better-sqlite3";
import { join } from "node:path";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import type { Content, Image, Published } from "./images.ts";
import { until, type Answer, type TestRegistry } from "./registry.ts";

/** Sends a request. @throws AssertionError where the answer has another status */
export async function send(
  registry: TestRegistry,
  status: number,
  ...request: Parameters<TestRegistry["send"]>
): Promise<Answer> {
  const answer = await registry.send(...request);
  const text = answer.bytes.subarray(0, 500).toString("utf8");
  assert.equal(answer.status, status, `${request[0]} ${request[1]}: ${text}`);
  return answer;
}

export async function pushBlob(registry: TestRegistry, repository: string, bytes: Buffer): Promise<Digest> {
  const digest = digestOf(bytes);
  await send(registry, 201, "POST", `/v2/${repository}/blobs/uploads/?digest=${digest}`, {}, bytes);
  return digest;
}

export async function pushManifest(
  registry: TestRegistry,
  repository: string,
  { manifest, mediaType, digest }: Published,
  tag?: string,
): Promise<void> {
  const path = `/v2/${repository}/manifests/${tag ?? digest}`;
  await send(registry, 201, "PUT", path, { "content-type": mediaType }, manifest);
}

export async function pushImage(registry: TestRegistry, repository: string, image: Image, tag?: string): Promise<void> {
  for (const blob of image.blobs.values()) await pushBlob(registry, repository, blob.bytes);
  await pushManifest(registry, repository, image, tag);
}

/** Whether a repository answers for a blob or a manifest. Costs a use of it. */
export async function has(registry: TestRegistry, repository: string, content: Content | Published): Promise<boolean> {
  const kind = "manifest" in content ? "manifests" : "blobs";
  const { status } = await registry.send("HEAD", `/v2/${repository}/${kind}/${content.digest}`);
  assert.ok(status === 200 || status === 404, String(status));
  return status === 200;
}

/** Whether the content is stored, for whomever; asks no one. */
export async function isStored(registry: TestRegistry, content: Content | Published): Promise<boolean> {
  const { digest } = content;
  const [row] = select(
    registry,
    `SELECT 1 FROM ${"manifest" in content ? "manifests" : "blobs"} WHERE digest = ?`,
    digest,
  );
  const file = (await registry.blobFiles()).some((path) => path.endsWith(hexOf(digest)));
  if (!("manifest" in content))
    assert.equal(row !== undefined, file, `${digest}: a row without a file, or a file without a row`);
  return row !== undefined;
}

/** Reads the database beside the daemon that writes it. */
export function select(
  registry: Pick<TestRegistry, "root">,
  sql: string,
  ...params: unknown[]
): Record<string, unknown>[] {
  using database = new Database(registry, true);
  return database.db.prepare(sql).all(...params) as Record<string, unknown>[];
}

/** Changes the database behind the daemon's back: what it remembers of it is its affair. */
export function change(registry: Pick<TestRegistry, "root">, sql: string, ...params: unknown[]): void {
  using database = new Database(registry, false);
  assert.ok(database.db.prepare(sql).run(...params).changes > 0, sql);
}

class Database implements Disposable {
  readonly db: Sqlite.Database;

  constructor(registry: Pick<TestRegistry, "root">, readonly: boolean) {
    this.db = new Sqlite(join(registry.root, "entrepot.db"), { readonly, timeout: 5000 });
  }

  [Symbol.dispose](): void {
    this.db.close();
  }
}

/** Resolves when what has happened so far lies before now, if only by a millisecond. */
export async function aMomentLater(): Promise<void> {
  const nowMs = Date.now();
  await until(() => Date.now() > nowMs, "the clock goes on");
}

/** Runs a job to its end. @returns what it told */
export async function job(
  registry: TestRegistry,
  name: "gc" | "scrub" | "retention",
  options: Record<string, unknown> = {},
): Promise<Record<string, unknown>[]> {
  const headers = { "content-type": "application/json" };
  const answer = await send(registry, 200, "POST", `/api/v1/${name}`, headers, JSON.stringify(options));
  return answer.bytes
    .toString()
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}
