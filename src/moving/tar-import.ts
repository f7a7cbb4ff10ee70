import type { Digest } from "../oci/digest.ts";
import { damaged, notWhole, planImport, readArchive, type Renaming, type Target } from "./import-plan.ts";
import { Refused, type RegistryClient } from "./registry-client.ts";
import { entryName } from "./tar-export.ts";
import { readTar, TarFault } from "./tar-reader.ts";

/** What an import tells. Sizes are bytes. */
export type ImportEvent =
  | { type: "progress"; bytes: number; total: number }
  | { type: "image"; name: string; digest: Digest };

export interface Imported {
  images: number;
  blobs: number;
  /** What was sent: the rest was there. */
  sentBytes: number;
}

/**
 * Puts the images of an archive into a registry, by the API that clients push by.
 *
 * The file is read twice. First the heads of its entries and its manifests: where each image goes, whether all of it is there with the size
 * that is announced, and whether it may be pushed, is known before anything is changed. Then blobs are sent in the order in which they lie
 * there, each once, and proven by the registry; then manifests; then, when all of them are there, tags. Whatever fails before leaves no tag;
 * the content that came is garbage, and is collected as that of any push that was broken off.
 * @throws TarFault, RegistryClient's Refused, naming the entry or the repository and the remedy
 */
export async function importArchive(
  client: RegistryClient,
  file: string,
  renamings: readonly Renaming[],
  tell: (event: ImportEvent) => void,
  signal: AbortSignal,
): Promise<Imported> {
  const targets = planImport(await readArchive(readTar(file)), renamings);
  for (const target of targets) {
    await naming(target.repository, () => client.checkPush(target.repository, signal));
    await checkLacking(client, target, signal);
  }
  const blobs = new Map<Digest, { sizeBytes: number; repositories: [string, ...string[]] }>();
  for (const target of targets) {
    for (const [digest, sizeBytes] of target.blobs) {
      const known = blobs.get(digest);
      if (known) known.repositories.push(target.repository);
      else blobs.set(digest, { sizeBytes, repositories: [target.repository] });
    }
  }
  const total = [...blobs.values()].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const wanted = new Map([...blobs].map(([digest, blob]) => [entryName(digest), { digest, ...blob }]));
  let moved = 0;
  let sentBytes = 0;
  for await (const entry of readTar(file)) {
    const blob = wanted.get(entry.name);
    if (!blob) continue;
    signal.throwIfAborted();
    if (entry.sizeBytes !== blob.sizeBytes)
      throw new TarFault(`${file} has changed while it was read: import it again`);
    const [first, ...others] = blob.repositories;
    const before = moved;
    const body = async function* (): AsyncGenerator<Buffer> {
      for await (const piece of entry.body()) {
        tell({ type: "progress", bytes: (moved += piece.length), total });
        yield piece;
      }
    };
    if (await sendBlob(client, first, blob, body, signal)) sentBytes += blob.sizeBytes;
    moved = before + blob.sizeBytes;
    tell({ type: "progress", bytes: moved, total });
    for (const other of others) {
      if (await client.mount(other, blob.digest, first, signal)) continue;
      throw new Error(`${other} can't be given ${blob.digest} of ${first}: import it again`);
    }
  }
  for (const target of targets) await naming(target.repository, () => pushManifests(client, target, signal));
  for (const target of targets) await naming(target.repository, () => moveTags(client, target, tell, signal));
  return {
    images: targets.reduce((sum, { tags, untagged }) => sum + tags.size + untagged.size, 0),
    blobs: blobs.size,
    sentBytes,
  };
}

/** @throws TarFault where an index is sparse, and the repository does not have the rest of it either */
async function checkLacking(
  client: RegistryClient,
  { repository, lacking }: Target,
  signal: AbortSignal,
): Promise<void> {
  const missing: string[] = [];
  for (const digest of lacking) {
    try {
      await client.manifest(repository, digest, signal);
    } catch (error) {
      if (!(error instanceof Refused && error.status === 404)) throw error;
      missing.push(entryName(digest));
    }
  }
  if (missing.length > 0) throw notWhole(repository, missing);
}

async function sendBlob(
  client: RegistryClient,
  repository: string,
  blob: { digest: Digest; sizeBytes: number },
  body: () => AsyncIterable<Buffer>,
  signal: AbortSignal,
): Promise<boolean> {
  let fault: unknown;
  const watched = async function* (): AsyncGenerator<Buffer> {
    try {
      yield* body();
    } catch (error) {
      // What the archive did wrong says more than what became of the request.
      fault = error;
      throw error;
    }
  };
  try {
    return await naming(repository, () => client.pushBlob(repository, blob, watched, signal));
  } catch (error) {
    if (fault !== undefined) throw fault;
    if (error instanceof Refused && error.status === 400) throw damaged(entryName(blob.digest));
    throw error;
  }
}

async function pushManifests(client: RegistryClient, target: Target, signal: AbortSignal): Promise<void> {
  for (const [digest, manifest] of target.manifests) {
    await client.pushManifest(target.repository, digest, manifest, signal);
  }
}

async function moveTags(
  client: RegistryClient,
  { repository, manifests, tags, untagged }: Target,
  tell: (event: ImportEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  for (const [tag, digest] of tags) {
    const manifest = manifests.get(digest);
    if (manifest) await client.pushManifest(repository, tag, manifest, signal);
    tell({ type: "image", name: `${repository}:${tag}`, digest });
  }
  for (const digest of untagged) tell({ type: "image", name: `${repository}@${digest}`, digest });
}

/** What a registry refuses, it does not always name; and a cached repository takes nothing, but another name does. */
async function naming<T>(repository: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const remedy = error.status === 405 || error.status === 404 ? "; or import it under another name with --as" : "";
    throw new Refused(error.status, `${repository}: ${error.message}${remedy}`);
  }
}
