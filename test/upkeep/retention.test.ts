import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import { parseConfig } from "../../src/config/load.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { Journal } from "../../src/events/journal.ts";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";
import { Catalog } from "../../src/store/catalog.ts";
import { TagCatalog, type Leaving } from "../../src/store/tag-catalog.ts";
import { Usage } from "../../src/store/usage.ts";
import { ClockWatch } from "../../src/upkeep/clock-watch.ts";
import { Retention, type RetentionReport } from "../../src/upkeep/retention.ts";
import { has, job, pushImage, pushManifest, select, send } from "../kit/hosted.ts";
import { makeArtifact, makeImage, makeIndex, type Image } from "../kit/images.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { DAY, jsonOf, MovingClock } from "../registry/clients.ts";

interface Rule {
  repositories?: string[];
  keep?: Record<string, unknown>;
  removeAll?: boolean;
}

function start(
  rules: Rule[],
  hosted: Record<string, unknown> = {},
  options: RegistryOptions & { schedule?: string } = {},
): Promise<TestRegistry> {
  return startRegistry({
    ...options,
    config: {
      hosted: { namespaces: ["team"], ...hosted },
      gc: { grace: "0s", interval: "0s", deleteUntagged: true },
      retention: {
        schedule: options.schedule ?? "never",
        rules: rules.map((rule) => ({ repositories: ["team/**"], ...rule })),
      },
    },
  });
}

interface Applied {
  report: Record<keyof RetentionReport, number>;
  /** `team/app:1 goes: …` */
  told: string[];
  refused: string[];
}

async function apply(registry: TestRegistry, options: Record<string, unknown> = {}): Promise<Applied> {
  const events = await job(registry, "retention", options);
  const last = events.at(-1);
  assert.equal(last?.["type"], "done", JSON.stringify(last));
  const told = events.flatMap(({ type, repository, tags }) =>
    type === "tags"
      ? (tags as { tag: string; reason: string }[]).map(({ tag, reason }) => `${String(repository)}:${tag} ${reason}`)
      : [],
  );
  const refused = events.flatMap(({ type, message }) => (type === "refused" ? [String(message)] : []));
  return { report: last as unknown as Applied["report"], told, refused };
}

function tagsOf(registry: TestRegistry, repository = "team/app"): string[] {
  const sql =
    "SELECT t.name FROM tags t JOIN repositories r ON r.id = t.repository_id WHERE r.name = ? ORDER BY t.name";
  return select(registry, sql, repository).map(({ name }) => String(name));
}

const [first, second, third] = [1, 2, 3].map((seed) => makeImage({ layers: [100], seed })) as [Image, Image, Image];

/** Each a day after the one before. */
async function pushDaily(registry: TestRegistry, clock: MovingClock, pushes: [string, Image][]): Promise<void> {
  for (const [tag, image] of pushes) {
    await pushImage(registry, "team/app", image, tag);
    clock.offsetMs += DAY;
  }
}

const companion = ({ digest }: { digest: Digest }): string => digest.replace(":", "-");

test("a tag that no rule keeps goes, and is an event; what has its digest stays, and content goes only by garbage collection", async () => {
  const clock = new MovingClock();
  await using registry = await start([{ keep: { tags: ["stable"], latestPushed: 1 } }], {}, { clock });
  await pushDaily(registry, clock, [
    ["1", first],
    ["stable", first],
    ["2", second],
    ["3", third],
  ]);
  const { report, told } = await apply(registry);
  assert.deepEqual([report.removed, report.kept, report.repositories], [2, 2, 1]);
  assert.deepEqual(told, [
    "team/app:1 goes: no rule keeps it; pushed 4 days ago, never pulled",
    "team/app:2 goes: no rule keeps it; pushed 2 days ago, never pulled",
  ]);
  assert.deepEqual(tagsOf(registry), ["3", "stable"]);
  await send(registry, 404, "GET", "/v2/team/app/manifests/1");
  assert.ok(await has(registry, "team/app", first));
  assert.ok(await has(registry, "team/app", second), "its content is there still");
  const events = select(
    registry,
    "SELECT action, outcome, repository, tag, digest, detail FROM events WHERE actor = 'retention'",
  );
  const event = { action: "delete", outcome: "done", repository: "team/app", detail: "tag" };
  assert.deepEqual(events, [
    { ...event, tag: "1", digest: first.digest },
    { ...event, tag: "2", digest: second.digest },
  ]);
  assert.equal(await registry.metric("entrepot_retention_removed_tags_total"), 2);
  assert.equal(await registry.metric("entrepot_retention_runs_total", { result: "done" }), 1);
  clock.offsetMs += DAY;
  await job(registry, "gc");
  await job(registry, "gc");
  assert.equal(await has(registry, "team/app", second), false);
  assert.ok(await has(registry, "team/app", first));
});

test("a dry run changes nothing, and tells why each tag stays or goes", async () => {
  const clock = new MovingClock();
  const keep = { tags: ["latest"], latestPushed: 2, latestPulled: 1, semver: "^1" };
  await using registry = await start([{ keep }], { immutableTags: { team: ["fixed"] } }, { clock });
  await pushDaily(registry, clock, [
    ["old", first],
    ["fixed", first],
    ["v1.2", first],
    ["latest", first],
    ["pulled", first],
    ["b", second],
    ["c", third],
  ]);
  await send(registry, 200, "GET", "/v2/team/app/manifests/pulled");
  const dump = (): unknown => ["tags", "repository_content"].map((table) => select(registry, `SELECT * FROM ${table}`));
  await job(registry, "gc", { dryRun: true });
  const before = dump();
  const { report, told } = await apply(registry, { dryRun: true });
  assert.deepEqual(dump(), before);
  assert.equal(select(registry, "SELECT * FROM events WHERE actor = 'retention'").length, 0);
  assert.deepEqual(
    told.map((line) => line.replace("team/app:", "")),
    [
      "b kept: 2nd of the 2 pushed last",
      "c kept: 1st of the 2 pushed last",
      "fixed kept: hosted.immutableTags names it",
      "latest kept: it matches latest",
      "old goes: no rule keeps it; pushed 7 days ago, never pulled",
      "pulled kept: 1st of the 1 pulled last",
      "v1.2 kept: a version in ^1",
    ],
  );
  const { removed, kept } = report;
  assert.deepEqual([removed, kept, report.dryRun], [1, 6, true]);
  assert.equal(await registry.metric("entrepot_retention_removed_tags_total"), 0);
  assert.deepEqual((await apply(registry)).told, [told[4]]);
});

test("an immutable tag and a pull of a moment ago keep a tag", async () => {
  const clock = new MovingClock();
  const options = { immutableTags: { team: ["v*"] } };
  await using registry = await start([{ keep: { pulledWithin: "12h" } }], options, { clock });
  await pushDaily(registry, clock, [
    ["v1", first],
    ["pulled", first],
    ["gone", first],
  ]);
  await send(registry, 200, "GET", "/v2/team/app/manifests/pulled");
  await apply(registry);
  assert.deepEqual(tagsOf(registry), ["pulled", "v1"]);
});

test("a rule that would remove all is refused with the remedy, others are applied; said twice, it is done", async () => {
  await using registry = await start([
    { repositories: ["team/old*"], keep: { tags: ["release-*"] } },
    { keep: { tags: ["latest"] } },
  ]);
  for (const repository of ["team/old-1", "team/old-2", "team/app"]) await pushImage(registry, repository, first, "1");
  await pushImage(registry, "team/app", first, "latest");
  const dry = await apply(registry, { dryRun: true });
  const { report, refused, told } = await apply(registry);
  const message =
    "retention.rules[0] (team/old*) would remove all 2 tags that it is about, so it is left out: let it keep some, or say that it may with removeAll: true in the rule, or once with --remove-all";
  assert.deepEqual([refused, dry.refused], [[message], [message]]);
  assert.deepEqual([report.refused, report.removed], [1, 1]);
  assert.match(told.join("\n"), /^team\/app:1 goes: .*$/);
  assert.deepEqual(tagsOf(registry, "team/old-1"), ["1"]);
  assert.ok(registry.log.some(({ level, rule }) => level === 50 && rule === "retention.rules[0] (team/old*)"));
  assert.equal(await registry.metric("entrepot_retention_runs_total", { result: "refused" }), 1);
  const narrow = await apply(registry, { removeAll: true, repository: "team/*-2" });
  assert.deepEqual([narrow.report.removed, narrow.report.repositories], [1, 1]);
  assert.deepEqual([tagsOf(registry, "team/old-1"), tagsOf(registry, "team/old-2")], [["1"], []]);
  assert.equal((await apply(registry, { removeAll: true })).report.removed, 1);
  assert.deepEqual((await apply(registry)).refused, [], "of nothing, nothing would go");
});

test("while the rules are tried, before anything goes, it is told that the run goes on", async () => {
  await using registry = await start([{ keep: { tags: ["latest"] } }]);
  await pushImage(registry, "team/app", first, "1");
  const types = (await job(registry, "retention")).map(({ type }) => type);
  assert.deepEqual(types.slice(0, 2), ["progress", "refused"]);
});

test("a rule may say itself that it removes all", async () => {
  await using registry = await start([{ removeAll: true }]);
  await pushImage(registry, "team/app", first, "1");
  assert.equal((await apply(registry)).report.removed, 1);
  assert.deepEqual(tagsOf(registry), []);
});

test("one tag that stays anywhere lets a rule remove all of another repository", async () => {
  await using registry = await start([{ keep: { tags: ["latest"] } }]);
  await pushImage(registry, "team/app", first, "1");
  await pushImage(registry, "team/zoo", first, "latest");
  const { report, refused } = await apply(registry, { repository: "team/app" });
  assert.deepEqual([report.removed, report.kept, refused], [1, 0, []]);
});

test("the first rule about a repository counts; without one all stay, and so do cached ones", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", first);
  await using registry = await start(
    [
      { repositories: ["team/a*"], keep: { tags: ["1"] } },
      { repositories: ["team/app", "team/b", "docker.io/**"], removeAll: true },
    ],
    {},
    { upstreams: { "docker.io": upstream } },
  );
  for (const repository of ["team/app", "team/b", "team/c"]) await pushImage(registry, repository, first, "1");
  await send(registry, 200, "GET", "/v2/docker.io/library/app/manifests/1");
  const { report } = await apply(registry);
  assert.deepEqual([report.removed, report.kept, report.repositories], [1, 1, 2]);
  const names = ["team/app", "team/b", "team/c", "docker.io/library/app"];
  assert.deepEqual(
    names.map((name) => tagsOf(registry, name).length),
    [1, 0, 1, 1],
  );
});

test("signatures stay as long as a tag leads to their image, count among no latest ones, and go with it", async () => {
  const clock = new MovingClock();
  await using registry = await start([{ keep: { latestPushed: 1 } }], {}, { clock });
  const index = makeIndex([
    [{ os: "linux", architecture: "amd64" }, second],
    [{ os: "linux", architecture: "arm64" }, third],
  ]);
  const signatures = [first, second, index].map((image, seed) => ({
    image,
    of: makeImage({ layers: [9], seed: `s${seed}` }),
  }));
  await pushImage(registry, "team/app", first, "1");
  clock.offsetMs += DAY;
  for (const image of [second, third]) await pushImage(registry, "team/app", image);
  await pushManifest(registry, "team/app", index, "2");
  for (const { image, of } of signatures) {
    clock.offsetMs += DAY;
    await pushImage(registry, "team/app", of, `${companion(image)}.sig`);
  }
  // A referrer of the index, and what is signed of that.
  const sbom = makeArtifact({ subject: index, artifactType: "application/spdx+json", payload: "{}" });
  await pushImage(registry, "team/app", sbom);
  await pushImage(registry, "team/app", makeImage({ layers: [9], seed: "of the sbom" }), `${companion(sbom)}.sig`);
  await pushImage(registry, "team/app", makeImage({ layers: [9], seed: "of nothing" }), `sha256-${"0".repeat(64)}.att`);
  const early = await apply(registry, { dryRun: true });
  assert.match(early.told.join("\n"), /0{64}\.att kept: pushed .+, and its image may still come$/m);
  clock.offsetMs += DAY + 60_000;
  const { told } = await apply(registry, { dryRun: true });
  const text = told.join("\n");
  assert.match(text, /:2 kept: 1st of the 1 pushed last$/m);
  for (const image of [second, index, sbom])
    assert.match(text, new RegExp(`:${companion(image)}.sig kept: it belongs to 2$`, "m"));
  assert.match(
    text,
    new RegExp(`:${companion(first)}.sig goes: its image has no tag that stays, and no rule keeps it; `, "m"),
  );
  assert.equal((await apply(registry)).report.removed, 3);
  assert.deepEqual(tagsOf(registry), ["2", ...[second, index, sbom].map((image) => `${companion(image)}.sig`).sort()]);
});

test("a clock that jumps ahead makes no tag older than it is", async () => {
  const clock = new MovingClock();
  await using registry = await start([{ keep: { pushedWithin: "30d", pulledWithin: "90d" } }], {}, { clock });
  await pushImage(registry, "team/app", first, "1");
  clock.offsetMs = 100 * DAY;
  await job(registry, "gc", { dryRun: true });
  const { report } = await apply(registry);
  assert.deepEqual([report.removed, report.kept, Math.round(report.clockGainedMs / DAY)], [0, 1, 100]);
});

test("wrong input is refused: nothing runs", async () => {
  await using registry = await start([{}]);
  const headers = { "content-type": "application/json" };
  for (const body of ['{"dryrun":true}', '{"repository":""}', '{"removeAll":1}', "[]"])
    await send(registry, 400, "POST", "/api/v1/retention", headers, body);
  assert.equal(select(registry, "SELECT * FROM jobs").length, 0);
});

test("the rules are listed as they are in force, a page at a time", async () => {
  await using registry = await start([{ keep: { semver: ">=2 <4" } }, { repositories: ["x/*", "y"], removeAll: true }]);
  const page = jsonOf(await send(registry, 200, "GET", "/api/v1/retention/rules?limit=1"));
  const nothing = { tags: [], latestPushed: 0, latestPulled: 0, pushedWithin: 0, pulledWithin: 0 };
  assert.deepEqual(page["items"], [
    { repositories: ["team/**"], keep: { ...nothing, semver: ">=2 <4" }, removeAll: false },
  ]);
  const next = jsonOf(
    await send(registry, 200, "GET", `/api/v1/retention/rules?limit=2&cursor=${String(page["next"])}`),
  );
  assert.deepEqual(next, { items: [{ repositories: ["x/*", "y"], keep: nothing, removeAll: true }] });
});

test("it comes by its schedule", async () => {
  const clock = new MovingClock();
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-retention-"));
  const options = { clock, root: join(folder.path, "data"), schedule: "30 3 * * *" };
  const rules = [{ removeAll: true }];
  {
    await using registry = await start(rules, {}, options);
    await pushImage(registry, "team/app", first, "1");
    await registry.until(
      () => select(registry, "SELECT * FROM schedules WHERE name LIKE 'retention %'").length === 1,
      "it has looked",
    );
  }
  clock.offsetMs = DAY;
  await using registry = await start(rules, {}, options);
  await registry.until(() => tagsOf(registry).length === 0, "the tag is gone");
});

test("what is moved, pushed or pulled between plan and removal stays, and so does the signature of an image that stays", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-retention-"));
  await using stack = new AsyncDisposableStack();
  const db = stack.use(await openSqlite(join(folder.path, "entrepot.db")));
  const catalog = new Catalog(db);
  const usage = stack.use(new Usage(catalog, systemClock, assert.fail));
  const metrics = new Metrics();
  const config = parseConfig({ retention: { rules: [{ repositories: ["**"], removeAll: true }] } });
  const log = await createLog({ level: "silent", format: "json", destination: new PassThrough() });
  const deps = { db, clock: systemClock, log, metrics, onFault: assert.fail };
  const journal = stack.use(new Journal({ ...deps, config: () => config.events }));
  const repository = "team/app" as RepositoryName;
  const [digest, other] = ["a", "b"].map((text) => digestOf(Buffer.from(text))) as [Digest, Digest];
  const signature = `${companion({ digest })}.sig`;
  const names = ["changed digest", "pulled", "pulled a moment ago", "pushed again", "same", signature];
  await db.transaction("lazy", async (tx) => {
    await tx.run("INSERT INTO repositories (id, name, created_at) VALUES (1, :repository, 0)", { repository });
    const link = "INSERT INTO repository_content (repository_id, digest, linked_at) VALUES (1, :digest, 0)";
    for (const linked of [digest, other]) await tx.run(link, { digest: linked });
    for (const name of names)
      await tx.run(
        `INSERT INTO tags (repository_id, name, digest, updated_at, checked_at, pulled_at) VALUES (1, :name, :digest, 1, 1, 1)`,
        { name, digest: name === signature ? other : digest },
      );
  });
  const update = (set: string, name: string): Promise<unknown> =>
    db.transaction("lazy", (tx) => tx.run(`UPDATE tags SET ${set} WHERE name = :name`, { name }));
  /** The plan has read its page when it removes: then all of this happens. */
  class Meanwhile extends TagCatalog {
    override async remove<One extends Leaving>(
      ...args: Parameters<typeof TagCatalog.prototype.remove<One>>
    ): Promise<One[]> {
      await update(`digest = '${other}'`, "changed digest");
      await update("pulled_at = 2", "pulled");
      await update("updated_at = 2", "pushed again");
      usage.touchTag(repository, "pulled a moment ago" as Tag);
      return super.remove(...args);
    }
  }
  const retention = new Retention({
    config: () => config,
    tags: new Meanwhile(db.background, catalog),
    usage,
    journal,
    clock: systemClock,
    watch: new ClockWatch(systemClock),
    metrics,
  });
  const options = { dryRun: false, removeAll: false };
  const report = await retention.run(options, () => Promise.resolve(), new AbortController().signal);
  assert.deepEqual([report.removed, report.changed], [1, 5]);
  const left = await db.all<{ name: string }>("SELECT name FROM tags ORDER BY name");
  assert.deepEqual(
    left.map(({ name }) => name),
    names.filter((name) => name !== "same"),
  );
  assert.equal((await db.all("SELECT * FROM events")).length, 1);
});
