import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Published } from "../kit/images.ts";
import { send } from "../kit/hosted.ts";
import type { TestRegistry } from "../kit/registry.ts";
import { RegistryFolder } from "./registry-folder.ts";

type Told = Record<string, unknown>;

/** A folder for a source, which goes away with its content. */
export async function sourceFolder(): Promise<RegistryFolder & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), "entrepot-source-"));
  return Object.assign(new RegistryFolder(path), {
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  });
}

export interface Outcome {
  /** The last event. */
  done: Told;
  /** `KIND NAME TAG-OR-DIGEST: REASON` of what was left out, in order. */
  leftOut: string[];
  unserved: string[];
}

/** Asks the daemon for an import, and waits for its end. */
export async function importFolder(registry: TestRegistry, path: string, options: Told = {}): Promise<Outcome> {
  const headers = { "content-type": "application/json" };
  const answer = await send(registry, 200, "POST", "/api/v1/import", headers, JSON.stringify({ path, ...options }));
  const events = answer.bytes
    .toString()
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Told);
  const done = events.at(-1) ?? {};
  assert.ok(done["type"] === "done" || done["type"] === "failed", JSON.stringify(done));
  const text = (value: unknown): string => (typeof value === "string" ? ` ${value}` : "");
  return {
    done,
    leftOut: events
      .filter(({ type }) => type === "leftOut")
      .map(
        ({ kind, name, tag, digest, reason }) =>
          `${String(kind)} ${String(name)}${text(tag ?? digest)}: ${String(reason)}`,
      ),
    unserved: events
      .filter(({ type }) => type === "unserved")
      .map(({ where, reason }) => `${String(where)}: ${String(reason)}`),
  };
}

/** Pulls an image or index by what names it, with all that it needs, and checks every byte. */
export async function pull(
  registry: TestRegistry,
  repository: string,
  reference: string,
  wanted: Published,
): Promise<void> {
  const { bytes, headers } = await send(registry, 200, "GET", `/v2/${repository}/manifests/${reference}`);
  assert.deepEqual(bytes, wanted.manifest);
  assert.equal(headers["content-type"], wanted.mediaType);
  const body = JSON.parse(bytes.toString()) as { config?: Told; layers?: Told[]; manifests?: Told[] };
  for (const { digest } of [...(body.config ? [body.config] : []), ...(body.layers ?? [])]) {
    await registry.pullBlob(repository, digest as Published["digest"]);
  }
  for (const { digest } of body.manifests ?? []) {
    const child = await send(registry, 200, "GET", `/v2/${repository}/manifests/${String(digest)}`);
    const published = {
      manifest: child.bytes,
      mediaType: String(child.headers["content-type"]),
      digest: digest as Published["digest"],
    };
    await pull(registry, repository, published.digest, published);
  }
}

export async function isAbsent(registry: TestRegistry, repository: string, reference: string): Promise<void> {
  await send(registry, 404, "GET", `/v2/${repository}/manifests/${reference}`);
}
