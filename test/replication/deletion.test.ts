import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Digest } from "../../src/oci/digest.ts";
import { isTag, type RepositoryName, type Tag } from "../../src/oci/reference.ts";
import { createTarget, type Target } from "../../src/remote/target.ts";
import {
  deleteTag,
  planDeletions,
  type DeletionPlan,
  type DeletionQuestion,
  type KnownCopy,
} from "../../src/replication/deletion.ts";
import { endpointOf } from "../../src/replication/rules.ts";
import { globFinder } from "../../src/replication/tag-filter.ts";
import { has, pushImage, pushManifest, send } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startBetween } from "./between.ts";

const HOUR = 3_600_000;
const NOW_MS = 1000 * HOUR;
const REPOSITORY = "team/app" as RepositoryName;

function digestFor(tag: string): Digest {
  return `sha256:${Buffer.from(tag).toString("hex").padEnd(64, "0").slice(0, 64)}` as Digest;
}

function tagsOf(...tags: string[]): Set<Tag> {
  return new Set(tags.filter((tag) => isTag(tag)));
}

function copyOf(tag: string, more: Partial<KnownCopy> = {}): KnownCopy {
  return { tag: tag as Tag, digest: digestFor(tag), owned: true, goneSinceMs: undefined, ...more };
}

function ask(
  copies: KnownCopy[],
  wanted: Set<Tag> | undefined,
  { rule, listed }: { rule?: Partial<DeletionQuestion["rule"]>; listed?: Set<Tag> } = {},
): DeletionPlan {
  return planDeletions({
    rule: {
      mirror: true,
      ownedOnly: true,
      grace: 24 * HOUR,
      maxPercent: 100,
      immutable: [],
      backup: undefined,
      ...rule,
    },
    copies,
    listed,
    wanted,
    nowMs: NOW_MS,
  });
}

test("a tag that the source has no more is missed first, and goes after the grace", () => {
  const first = ask([copyOf("1"), copyOf("2")], tagsOf("1"));
  assert.deepEqual(first, { remove: [], missed: [{ tag: "2", digest: digestFor("2") }], back: [] });
  const missed = (hours: number) => copyOf("2", { goneSinceMs: NOW_MS - hours * HOUR });
  assert.deepEqual(ask([copyOf("1"), missed(23)], tagsOf("1")), { remove: [], missed: [], back: [] });
  const due = ask([copyOf("1"), missed(24)], tagsOf("1"));
  assert.deepEqual(due.remove, [{ tag: "2", digest: digestFor("2") }]);
});

test("a tag that came back is no longer missed, and deletion that was turned off forgets what it missed", () => {
  const missed = copyOf("2", { goneSinceMs: 1 });
  assert.deepEqual(ask([copyOf("1"), missed], tagsOf("1", "2")), { remove: [], missed: [], back: ["2"] });
  const off = ask([copyOf("1"), missed], tagsOf("1"), { rule: { mirror: false } });
  assert.deepEqual(off, { remove: [], missed: [], back: ["2"] });
});

test("an empty selection deletes nothing and says so; one that failed is told elsewhere", () => {
  const missed = copyOf("1", { goneSinceMs: 1 });
  assert.match(ask([missed], tagsOf()).refused ?? "", /selects nothing/);
  assert.deepEqual(ask([missed], undefined), { remove: [], missed: [], back: [] });
});

test("more than the share that may go is nothing that goes, with the remedy; one may go in any case", () => {
  const copies = (gone: number): KnownCopy[] =>
    Array.from({ length: 10 }, (_, at) => copyOf(`t${at}`, at < gone ? { goneSinceMs: 1 } : {}));
  const wanted = (gone: number) => tagsOf(...copies(gone).flatMap(({ tag }, at) => (at < gone ? [] : [tag])));
  assert.equal(ask(copies(1), wanted(1), { rule: { maxPercent: 5 } }).remove.length, 1);
  const many = ask(copies(2), wanted(2), { rule: { maxPercent: 5 } });
  assert.deepEqual(many.remove, []);
  assert.match(many.refused ?? "", /2 of 10 copies would go, and delete\.maxPercent \(5\) lets 1/);
  assert.equal(ask(copies(2), wanted(2), { rule: { maxPercent: 20 } }).remove.length, 2);
});

test("what others have there is missed only where the rule is to own the repository, and never a backup or a signature", () => {
  const listed = tagsOf("1", "theirs", "1-prev", "old-prev", `sha256-${"a".repeat(64)}.sig`);
  const copies = [copyOf("1"), copyOf("there-before", { owned: false })];
  assert.deepEqual(ask(copies, tagsOf("1"), { listed }).missed, []);
  const all = ask(copies, tagsOf("1"), { listed, rule: { ownedOnly: false, backup: "{{tag}}-prev" } });
  assert.deepEqual(all.missed, [
    { tag: "there-before", digest: digestFor("there-before") },
    { tag: "theirs", digest: undefined },
    { tag: "old-prev", digest: undefined },
  ]);
});

const TAGS = ["1", "2", "3", "v1", "v2", "latest", "latest-prev", `sha256-${"b".repeat(64)}.sig`];
const questions: fc.Arbitrary<DeletionQuestion> = fc.record({
  rule: fc.record({
    mirror: fc.boolean(),
    ownedOnly: fc.boolean(),
    grace: fc.constantFrom(0, HOUR, 24 * HOUR),
    maxPercent: fc.integer({ min: 1, max: 100 }),
    immutable: fc.subarray(["v*"]),
    backup: fc.constantFrom(undefined, "{{tag}}-prev"),
  }),
  copies: fc
    .uniqueArray(
      fc.record({
        tag: fc.constantFrom(...TAGS),
        owned: fc.boolean(),
        hours: fc.option(fc.integer({ min: 0, max: 48 }), { nil: undefined }),
      }),
      { selector: ({ tag }) => tag },
    )
    .map((rows) =>
      rows.map(({ tag, owned, hours }) =>
        copyOf(tag, { owned, goneSinceMs: hours === undefined ? undefined : NOW_MS - hours * HOUR }),
      ),
    ),
  listed: fc.option(
    fc.subarray(TAGS).map((tags) => tagsOf(...tags)),
    { nil: undefined },
  ),
  wanted: fc.option(
    fc.subarray(TAGS).map((tags) => tagsOf(...tags)),
    { nil: undefined },
  ),
  nowMs: fc.constant(NOW_MS),
});

test("whatever is asked, nothing goes that may not", () => {
  fc.assert(
    fc.property(questions, (question) => {
      const { rule, copies, listed, wanted } = question;
      const { remove, missed, back, refused } = planDeletions(question);
      const rows = new Map(copies.map((copy) => [copy.tag, copy]));
      const total = new Set([...rows.keys(), ...(rule.ownedOnly ? [] : (listed ?? []))]).size;
      if (remove.length > 0) {
        assert.ok(rule.mirror && wanted && wanted.size > 0 && refused === undefined);
        assert.ok(remove.length === 1 || remove.length <= (total * rule.maxPercent) / 100);
      }
      for (const { tag } of [...remove, ...missed]) {
        assert.ok(!wanted?.has(tag), "is wanted");
        assert.ok(globFinder(rule.immutable)(tag) === undefined, "is immutable");
        assert.ok(!tag.startsWith("sha256-"), "is a signature");
        if (rule.ownedOnly) assert.ok(rows.get(tag)?.owned, "is not the rule's own");
      }
      for (const { tag, digest } of remove) {
        const row = rows.get(tag);
        assert.ok(row && (row.goneSinceMs ?? NOW_MS) + rule.grace <= NOW_MS, "is within its grace");
        assert.equal(digest, row.digest);
      }
      for (const tag of back) {
        assert.notEqual(rows.get(tag)?.goneSinceMs, undefined);
        assert.ok(!remove.some((one) => one.tag === tag));
      }
      for (const { tag } of missed) assert.equal(rows.get(tag)?.goneSinceMs, undefined);
    }),
    { numRuns: 2000 },
  );
});

// ---- at a registry ----

const SIGNAL = AbortSignal.timeout(30_000);
const first = makeImage({ layers: [500], seed: "first" });
const second = makeImage({ layers: [500], seed: "second" });

async function targetAt(url: string): Promise<Target> {
  const { replication } = parseConfig({ replication: { registries: { dr: { url } } } });
  const { dr } = replication.registries;
  assert.ok(dr);
  const log = await createLog({ level: "silent", format: "json", destination: { write: () => undefined } });
  const observe = { request: () => undefined, received: () => undefined };
  return await createTarget(endpointOf(dr), { clock: systemClock, log, observe });
}

function deletion(tag: string, { digest }: { digest: Digest }) {
  return { repository: REPOSITORY, tag: tag as Tag, expected: digest };
}

test("a tag goes, and the image's other tags stay; one that others have moved stays, too", async () => {
  await using dr = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await using target = await targetAt(dr.url);
  await pushImage(dr, REPOSITORY, first, "1");
  await pushManifest(dr, REPOSITORY, first, "latest");
  await pushImage(dr, REPOSITORY, second, "2");
  assert.equal(await deleteTag(target, deletion("1", first), SIGNAL), "deleted");
  await send(dr, 404, "HEAD", `/v2/${REPOSITORY}/manifests/1`);
  await send(dr, 200, "HEAD", `/v2/${REPOSITORY}/manifests/latest`);
  assert.equal(await deleteTag(target, deletion("1", first), SIGNAL), "absent");
  assert.equal(await deleteTag(target, deletion("2", first), SIGNAL), "moved");
  await send(dr, 200, "HEAD", `/v2/${REPOSITORY}/manifests/2`);
});

test("a tag that moves between the look and the deletion stays", async () => {
  await using dr = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await using way = await startBetween(dr.url);
  await using target = await targetAt(way.url);
  await pushImage(dr, REPOSITORY, second, "1");
  const { headers } = await dr.send("HEAD", `/v2/${REPOSITORY}/manifests/1`);
  assert.equal(headers["docker-content-digest"], second.digest);
  // The look is answered as it was a moment ago.
  way.trick = ({ method }) =>
    method === "HEAD" ? { status: 200, headers: { "docker-content-digest": first.digest } } : undefined;
  assert.equal(await deleteTag(target, deletion("1", first), SIGNAL), "moved");
  assert.ok(await has(dr, REPOSITORY, second));
  await send(dr, 200, "HEAD", `/v2/${REPOSITORY}/manifests/1`);
});

test("a deletion by a stand-in that breaks off leaves the tag as it was, and is gone on with where it was killed", async () => {
  await using dr = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await using way = await startBetween(dr.url);
  await using target = await targetAt(way.url);
  await pushImage(dr, REPOSITORY, first, "1");
  await pushManifest(dr, REPOSITORY, first, "latest");
  const body = JSON.stringify({ errors: [{ code: "UNSUPPORTED", message: "no" }] });
  const byTag = (path: string): boolean => !path.includes("@") && !/manifests\/sha256:/.test(path);
  let stands = false;
  let denies = true;
  way.trick = ({ method, path }) => {
    if (method === "PUT" && path.endsWith("/manifests/1")) stands = true;
    if (method !== "DELETE") return undefined;
    if (byTag(path)) return { status: 405, body };
    return stands && denies ? { status: 403, body: "{}" } : undefined;
  };
  await assert.rejects(deleteTag(target, deletion("1", first), SIGNAL), /credentials/);
  const { headers } = await dr.send("HEAD", `/v2/${REPOSITORY}/manifests/1`);
  assert.equal(headers["docker-content-digest"], first.digest);

  // Nobody puts the tag back: as after a kill.
  stands = false;
  let puts = 0;
  const tricks = way.trick;
  way.trick = (request, given) => {
    const isPut = request.method === "PUT" && request.path.endsWith("/manifests/1");
    return isPut && ++puts > 1 ? { status: 403, body: "{}" } : tricks(request, given);
  };
  await assert.rejects(deleteTag(target, deletion("1", first), SIGNAL), /credentials/);
  const { headers: now } = await dr.send("HEAD", `/v2/${REPOSITORY}/manifests/1`);
  assert.notEqual(now["docker-content-digest"], first.digest);
  denies = false;
  assert.equal(await deleteTag(target, deletion("1", first), SIGNAL), "deleted");
  await send(dr, 404, "HEAD", `/v2/${REPOSITORY}/manifests/1`);
  await send(dr, 200, "HEAD", `/v2/${REPOSITORY}/manifests/latest`);
});
