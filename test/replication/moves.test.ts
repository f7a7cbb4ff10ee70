import assert from "node:assert/strict";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { ReplicationRule } from "../../src/config/schema.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { createTarget } from "../../src/remote/target.ts";
import {
  moveTogether,
  undoMoves,
  type MoveTarget,
  type RecordedMove,
  type StagedTag,
  type UndoneMove,
} from "../../src/replication/moves.ts";
import { endpointOf } from "../../src/replication/rules.ts";
import { pushImage, pushManifest } from "../kit/hosted.ts";
import { makeImage, type Image, type Published } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startBetween, type Between } from "./between.ts";

const REPOSITORY = "team/app" as RepositoryName;
const SIGNAL = AbortSignal.timeout(60_000);
const [v1, v2] = ["1", "2"].map((seed) => makeImage({ layers: [500], seed })) as [Image, Image];

type World = Awaited<ReturnType<typeof startWorld>>;

/** A target with v1 and v2 in it; `app` and `worker` lead to v1, `new` is not there. */
async function startWorld() {
  await using stack = new AsyncDisposableStack();
  const dr = stack.use(await startRegistry({ config: { hosted: { namespaces: ["team"] } } }));
  const way: Between = stack.use(await startBetween(dr.url));
  const { replication } = parseConfig({ replication: { registries: { dr: { url: way.url } } } });
  const { dr: configured } = replication.registries;
  assert.ok(configured);
  const log = await createLog({ level: "silent", format: "json", destination: { write: () => undefined } });
  const observe = { request: () => undefined, received: () => undefined };
  const target = stack.use(await createTarget(endpointOf(configured), { clock: systemClock, log, observe }));
  await pushImage(dr, REPOSITORY, v1, "app");
  await pushManifest(dr, REPOSITORY, v1, "worker");
  await pushImage(dr, REPOSITORY, v2);
  const place: MoveTarget = { name: "dr", target, concurrency: 2 };
  const owned = stack.move();
  return { dr, way, place, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function staged(...tags: string[]): StagedTag[] {
  return tags.map((tag) => ({ repository: REPOSITORY, tag: tag as Tag, digest: v2.digest }));
}

function writeOf(write: object = {}): ReplicationRule["write"] {
  const { replication } = parseConfig({
    replication: {
      registries: { hub: { url: "http://hub.test" }, dr: { url: "http://dr.test" } },
      rules: [{ name: "rule", from: { registry: "hub", repositories: ["a"] }, to: [{ registry: "dr" }], write }],
    },
  });
  const [rule] = replication.rules;
  assert.ok(rule);
  return rule.write;
}

/** Records as the database does: of one tag the last. */
class Records {
  readonly byTag = new Map<string, RecordedMove>();

  readonly record = async (moves: RecordedMove[]): Promise<void> => {
    for (const move of moves) this.byTag.set(move.tag, move);
    return Promise.resolve();
  };
}

async function leads({ dr }: World, tag: string): Promise<unknown> {
  const { status, headers } = await dr.send("HEAD", `/v2/${REPOSITORY}/manifests/${tag}`);
  return status === 404 ? undefined : headers["docker-content-digest"];
}

async function state(world: World): Promise<unknown[]> {
  return await Promise.all(["app", "worker", "new"].map((tag) => leads(world, tag)));
}

function change({ way }: World, method: string, tag: string, then: () => unknown): void {
  way.trick = (request) => {
    if (request.method === method && request.path.endsWith(`/manifests/${tag}`)) then();
    return undefined;
  };
}

async function undo(world: World, { byTag }: Records): Promise<Record<string, string>> {
  const undone: UndoneMove[] = [];
  await undoMoves([...byTag.values()], world.place, SIGNAL, (one) => undone.push(one));
  return Object.fromEntries(
    undone.map(({ move, outcome, because = "" }) => [move.tag, `${outcome} ${because}`.trim()]),
  );
}

function outcomes(moved: Awaited<ReturnType<typeof moveTogether>>): string[] {
  return moved.map(({ outcome }) => outcome);
}

test("tags move together once what each led to is recorded, and go back", async () => {
  await using world = await startWorld();
  const records = new Records();
  change(world, "PUT", "app", () => assert.equal(records.byTag.size, 3));
  const moved = await moveTogether(staged("app", "worker", "new"), world.place, writeOf(), records.record, SIGNAL);
  assert.deepEqual(outcomes(moved), ["moved", "moved", "moved"]);
  assert.deepEqual(await state(world), [v2.digest, v2.digest, v2.digest]);
  assert.deepEqual(
    [...records.byTag.values()].map(({ tag, was }) => [tag, was]),
    [
      ["app", v1.digest],
      ["worker", v1.digest],
      ["new", undefined],
    ],
  );
  const again = await moveTogether(staged("app", "worker", "new"), world.place, writeOf(), records.record, SIGNAL);
  assert.deepEqual(outcomes(again), ["unchanged", "unchanged", "unchanged"]);

  assert.deepEqual(await undo(world, records), { app: "undone", worker: "undone", new: "undone" });
  assert.deepEqual(await state(world), [v1.digest, v1.digest, undefined]);
  assert.deepEqual(await undo(world, records), { app: "undone", worker: "undone", new: "undone" });
});

test("none moves where one may not, or what it is to lead to is not there", async () => {
  await using world = await startWorld();
  const records = new Records();
  const move = (tags: StagedTag[], write: object) =>
    moveTogether(tags, world.place, writeOf(write), records.record, SIGNAL);
  await assert.rejects(
    move(staged("new", "app"), { existing: "fail" }),
    /dr team\/app:app leads to sha256:.*no tag has been moved/,
  );
  const gone: Published = makeImage({ layers: [1], seed: "gone" });
  const absent = { repository: REPOSITORY, tag: "worker" as Tag, digest: gone.digest };
  await assert.rejects(move([...staged("app", "new"), absent], {}), /does not have .* any more: no tag has been moved/);
  assert.equal(records.byTag.size, 0);
  assert.deepEqual(await state(world), [v1.digest, v1.digest, undefined]);
});

test("what the rule protects stays, and backups are there before the first tag moves", async () => {
  await using world = await startWorld();
  const records = new Records();
  const write = { immutable: ["work*"], backup: "{{tag}}-prev" };
  let backup: Promise<unknown> | undefined;
  change(world, "PUT", "app", () => (backup = leads(world, "app-prev")));
  const moved = await moveTogether(staged("app", "worker", "new"), world.place, writeOf(write), records.record, SIGNAL);
  assert.deepEqual(outcomes(moved), ["moved", "kept", "moved"]);
  assert.equal(await backup, v1.digest);
  assert.deepEqual(await state(world), [v2.digest, v1.digest, v2.digest]);
  assert.deepEqual([...records.byTag.keys()], ["app", "new"]);
});

test("a tag that was pushed later at the target stays there, and the others move", async () => {
  await using world = await startWorld();
  const records = new Records();
  const older = staged("app", "new").map((one) => ({ ...one, origin: { atMs: 1, by: "elsewhere" } }));
  const moved = await moveTogether(older, world.place, writeOf(), records.record, SIGNAL);
  assert.deepEqual(outcomes(moved), ["kept", "moved"]);
  assert.match(moved[0]?.because ?? "", /pushed later/);
  assert.deepEqual(await state(world), [v1.digest, v1.digest, v2.digest]);
});

test("a failure in between is told with what has moved; called again, the rest moves, and all go back", async () => {
  await using world = await startWorld();
  const records = new Records();
  const place = { ...world.place, concurrency: 1 };
  world.way.trick = ({ method, path }) =>
    method === "PUT" && path.endsWith("/manifests/worker") ? { status: 403, body: "{}" } : undefined;
  await assert.rejects(
    moveTogether(staged("app", "worker", "new"), place, writeOf(), records.record, SIGNAL),
    /dr team\/app:worker could not be moved, and of 3 tags only team\/app:app has: .*403.*credentials/,
  );
  assert.deepEqual(await state(world), [v2.digest, v1.digest, undefined]);
  world.way.trick = () => undefined;
  const moved = await moveTogether(staged("app", "worker", "new"), place, writeOf(), records.record, SIGNAL);
  assert.deepEqual(outcomes(moved), ["unchanged", "moved", "moved"]);
  assert.deepEqual(await undo(world, records), { app: "undone", worker: "undone", new: "undone" });
  assert.deepEqual(await state(world), [v1.digest, v1.digest, undefined]);
});

test("what others have moved or deleted since is left, and one that can't go back does not hold up the others", async () => {
  await using world = await startWorld();
  const records = new Records();
  await moveTogether(staged("app", "worker", "new"), world.place, writeOf(), records.record, SIGNAL);
  const theirs = makeImage({ layers: [300], seed: "theirs" });
  await pushImage(world.dr, REPOSITORY, theirs, "worker");
  await world.dr.send("DELETE", `/v2/${REPOSITORY}/manifests/app`);
  assert.deepEqual(await undo(world, records), {
    app: "left others have deleted it since",
    worker: `left others have moved it since, to ${theirs.digest}`,
    new: "undone",
  });
  assert.deepEqual(await state(world), [undefined, theirs.digest, undefined]);

  const lost = makeImage({ layers: [1], seed: "lost" });
  const move = { repository: REPOSITORY, tag: "worker" as Tag, was: lost.digest, became: theirs.digest };
  records.byTag.set("worker", move);
  const undone = await undo(world, records);
  assert.match(undone["worker"] ?? "", /^failed dr team\/app@sha256:.* is not there any more$/);
  assert.equal(undone["new"], "undone");
});
