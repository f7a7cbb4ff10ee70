import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { until } from "../kit/registry.ts";
import { WrongAnswer, type PushClient, type Session } from "./client.ts";
import { digestIn, REPOSITORIES, TAGS, type Item, type World } from "./load.ts";
import type { Random } from "./random.ts";
import { assertSound, Metadata, storedDigests } from "./stage.ts";

/** What was found to hold. */
export interface Holding {
  tags: number;
  manifests: number;
  blobs: number;
  /** Uploads that were brought to their end, or cancelled. */
  uploads: number;
}

/**
 * Checks, while nobody else uses it, that a registry holds what it acknowledged, and takes what it finds as what holds from now on.
 * @throws AssertionError, WrongAnswer
 */
export async function verify(world: World, client: PushClient, root: string, random: Random): Promise<Holding> {
  const uploads = world.sessions.size;
  for (const session of world.sessions) await endSession(session, client, random);
  world.sessions.clear();
  let tags = 0;
  let manifests = 0;
  let blobs = 0;
  for (const repository of REPOSITORIES) {
    const found = await verifyTags(repository, world, client);
    tags += found.size;
    for (const item of withChildren(world.items)) {
      if (!(await verifyManifest(repository, item, world, client))) {
        assert.ok(!found.has(item.digest), `a tag of ${repository} points to ${item.digest}, which is not there`);
        continue;
      }
      manifests++;
      blobs += item.blobs.length;
    }
    await verifyLoose(repository, world, client);
  }
  await verifyStorage(world, root);
  await assertSound(client, root);
  return { tags, manifests, blobs, uploads };
}

async function endSession(session: Session, client: PushClient, random: Random): Promise<void> {
  const { repository, content, location } = session;
  const offset = await client.offsetOf(session);
  if (offset === undefined) {
    assert.ok(session.ending, `the upload ${location} is gone`);
    return;
  }
  const { acknowledgedBytes, sentBytes, ending } = session;
  assert.ok(
    // Between its blob's rename and its own end it is back at its start.
    (offset >= acknowledgedBytes && offset <= sentBytes) || (ending && offset === 0),
    `the upload ${location} is at ${offset}, of ${acknowledgedBytes} acknowledged and ${sentBytes} sent bytes`,
  );
  if (random.chance(0.3)) {
    const answer = await client.cancel(session);
    if (answer.status !== 204) throw new WrongAnswer(`cancel ${location}`, answer);
    assert.equal(await client.offsetOf(session), undefined, `the upload ${location} is there after it was cancelled`);
    return;
  }
  session.acknowledgedBytes = offset;
  const answer = await client.finish(session);
  if (answer.status !== 201) throw new WrongAnswer(`finish ${location} from ${offset}`, answer);
  const blob = await client.get(`/v2/${repository}/blobs/${content.digest}`);
  if (blob.status !== 200) throw new WrongAnswer(`GET ${content.digest} after its upload was resumed`, blob);
  assert.ok(blob.bytes.equals(content.bytes), `wrong bytes of ${content.digest} after its upload was resumed`);
}

/** @returns the digests that tags point to */
async function verifyTags(repository: string, { ledger }: World, client: PushClient): Promise<Set<string>> {
  const found = new Map<string, string>();
  for (const tag of TAGS) {
    const name = `${repository}:${tag}`;
    const digest = digestIn(await client.get(`/v2/${repository}/manifests/${tag}`), name);
    const register = ledger.tag(repository, tag);
    const possible = register.possible();
    assert.ok(
      possible.has(digest),
      `${name} is ${digest ?? "absent"}, not ${[...possible].map((value) => value ?? "absent").join(" or ")}`,
    );
    register.settle(digest);
    if (digest !== undefined) found.set(tag, digest);
  }
  const list = await client.get(`/v2/${repository}/tags/list`);
  const listed = list.status === 404 ? [] : (JSON.parse(list.bytes.toString()) as { tags: string[] }).tags;
  assert.deepEqual([...listed].sort(), [...found.keys()].sort(), `the tags that ${repository} lists`);
  return new Set(found.values());
}

function withChildren(items: readonly Item[]): Item[] {
  return items.flatMap((item) => [item, ...item.children]);
}

/** @returns whether it is there, with everything that belongs to it */
async function verifyManifest(repository: string, item: Item, { ledger }: World, client: PushClient): Promise<boolean> {
  const name = `${repository}@${item.digest}`;
  const digest = digestIn(await client.get(`/v2/${repository}/manifests/${item.digest}`), name);
  const register = ledger.manifest(repository, item.digest);
  assert.ok(register.possible().has(digest), `${name} is ${digest === undefined ? "absent" : "there"}`);
  register.settle(digest);
  if (item.subject !== undefined) {
    const { bytes } = await client.get(`/v2/${repository}/referrers/${item.subject}`);
    assert.equal(bytes.includes(item.digest), digest !== undefined, `${name} among the referrers of ${item.subject}`);
  }
  if (digest === undefined) return false;
  for (const content of item.blobs) {
    const answer = await client.get(`/v2/${repository}/blobs/${content.digest}`);
    if (answer.status !== 200) throw new WrongAnswer(`GET ${content.digest} of ${name}`, answer);
    assert.ok(answer.bytes.equals(content.bytes), `wrong bytes of ${content.digest} of ${name}`);
  }
  return true;
}

/** Blobs that no manifest refers to: they may be collected at any time, and those that were deleted stay deleted. */
async function verifyLoose(repository: string, { ledger, loose }: World, client: PushClient): Promise<void> {
  for (const [digest, content] of loose) {
    const answer = await client.get(`/v2/${repository}/blobs/${digest}`);
    const register = ledger.looseBlob(repository, digest);
    if (answer.status === 404) {
      register.settle(undefined);
      continue;
    }
    if (answer.status !== 200) throw new WrongAnswer(`GET ${digest} of ${repository}`, answer);
    assert.ok(register.possible().has(digest), `${digest} is in ${repository} again`);
    assert.ok(answer.bytes.equals(content.bytes), `wrong bytes of ${digest}`);
    register.settle(digest);
  }
}

/** The files and the database agree, and nothing lies about that belongs to nobody. */
async function verifyStorage(world: World, root: string): Promise<void> {
  using metadata = new Metadata(root);
  // What a killed daemon left is put in order while the next one serves.
  await until(async () => {
    const known = new Set(metadata.column("SELECT digest FROM blobs"));
    return (await storedDigests(root)).every((digest) => known.has(digest));
  }, "every file under blobs/ has a row");
  await until(async () => {
    const sessions = new Set(metadata.column("SELECT id FROM uploads"));
    return (await readdir(join(root, "uploads"))).every((id) => sessions.has(id));
  }, "every file under uploads/ has a session");
  // Begun for a client that was never told: they expire.
  const uploads = metadata.column("SELECT id FROM uploads");
  assert.ok(uploads.length <= world.lostUploads, `${uploads.length} uploads, ${world.lostUploads} that nobody ended`);
  for (const folder of ["staging", "quarantine"]) assert.deepEqual(await readdir(join(root, folder)), [], folder);
}
