import assert from "node:assert/strict";
import { hash } from "node:crypto";
import { test } from "node:test";
import { Credentials, type NewRobot, type NewToken } from "../../src/access/credentials.ts";
import { isAdmin } from "../../src/access/rights.ts";
import { WITHOUT_LIMITS } from "../../src/access/limits.ts";
import type { Limit } from "../../src/access/principal.ts";
import { systemClock } from "../../src/base/clock.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import { until } from "../kit/registry.ts";
import { BY, makeWorld, type World } from "./world.ts";

const DAY_MS = 86_400_000;
const PULL: Limit[] = [{ repositories: ["team/**"], verbs: ["pull"] }];
const anybody = (): void => undefined;

interface Stage extends AsyncDisposable {
  world: World;
  credentials: Credentials;
  /** Puts the clock on. */
  pass: (ms: number) => void;
  now: () => number;
}

/** With the team `team`, and the users root (an administrator) and alice. */
async function stage(): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const world = stack.use(await makeWorld());
  let aheadMs = 0;
  const clock = { ...systemClock, now: () => systemClock.now() + aheadMs };
  const { db, accounts } = world;
  const credentials = stack.use(new Credentials({ db, clock, accounts }));
  await accounts.addUser({ name: "root", admin: true }, BY);
  await accounts.addUser({ name: "alice", admin: false }, BY);
  await world.teams.add({ name: "team", description: "", owner: undefined }, BY);
  const owned = stack.move();
  return {
    world,
    credentials,
    pass: (ms) => void (aheadMs += ms),
    now: () => clock.now(),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function robot(more: Partial<NewRobot> = {}): NewRobot {
  return { name: "ci", team: undefined, description: "", limits: PULL, expiresAtMs: Infinity, ...more };
}

function token(more: Partial<NewToken> = {}): NewToken {
  return { user: "alice", name: "laptop", limits: PULL, expiresAtMs: Infinity, ...more };
}

/** A refusal with that status, and words. */
function refused(status: number, words: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof RegistryError && error.status === status && words.test(error.message);
}

test("a robot logs in with its secret as what it is", async () => {
  await using here = await stage();
  const { credentials, world } = here;
  const { robot: made, secret } = await credentials.addRobot(robot({ team: "team" }), BY, anybody);
  assert.match(secret, /^entrepot_[A-Za-z0-9_-]{43}$/);
  const found = await credentials.bySecret(secret);
  const principal = { kind: "robot", id: made.id, name: "ci", team: made.team?.id, limits: PULL };
  assert.deepEqual(found, { principal, name: "ci", expiresAtMs: undefined, kind: "robot", id: made.id });
  assert.deepEqual(await credentials.robotPrincipal(made.id), principal);
  assert.deepEqual((await credentials.robotByName("ci"))?.principal, principal);
  assert.equal(made.team?.name, "team");
  assert.ok(world.accounts.hasLogins);
  const own = await credentials.addRobot(robot({ name: "own" }), BY, anybody);
  assert.equal((await credentials.robotPrincipal(own.robot.id))?.team, undefined);
});

test("a robot is in no more once it is disabled, expired, rotated or removed", async () => {
  await using here = await stage();
  const { credentials, pass, now } = here;
  const { robot: made, secret } = await credentials.addRobot(robot({ expiresAtMs: now() + DAY_MS }), BY, anybody);
  const isIn = async (by: string): Promise<boolean> => (await credentials.bySecret(by)) !== undefined;
  const isKnown = async (): Promise<boolean[]> => [
    (await credentials.robotPrincipal(made.id)) !== undefined,
    (await credentials.robotByName("ci")) !== undefined,
  ];
  await credentials.updateRobot("ci", { disabled: true }, BY, anybody);
  assert.deepEqual([await isIn(secret), ...(await isKnown())], [false, false, false], "disabled");
  await credentials.updateRobot("ci", { disabled: false }, BY, anybody);
  assert.deepEqual([await isIn(secret), ...(await isKnown())], [true, true, true], "enabled");

  const rotated = await credentials.rotateRobot("ci", undefined, BY, anybody);
  assert.deepEqual([await isIn(secret), await isIn(rotated.secret)], [false, true], "rotated");
  assert.equal(rotated.robot.expiresAtMs, made.expiresAtMs);

  pass(DAY_MS);
  assert.deepEqual([await isIn(rotated.secret), ...(await isKnown())], [false, false, false], "expired");
  await assert.rejects(credentials.rotateRobot("ci", undefined, BY, anybody), refused(409, /ci is expired: say/));
  const again = await credentials.rotateRobot("ci", Infinity, BY, anybody);
  assert.deepEqual([await isIn(again.secret), again.robot.expiresAtMs], [true, undefined]);

  await credentials.removeRobot("ci", BY, anybody);
  assert.deepEqual([await isIn(again.secret), ...(await isKnown())], [false, false, false], "removed");
  await assert.rejects(credentials.removeRobot("ci", BY, anybody), refused(404, /no robot ci/));
});

test("what is remembered of a robot is what it was changed to", async () => {
  await using here = await stage();
  const { credentials } = here;
  const { robot: made } = await credentials.addRobot(robot(), BY, anybody);
  assert.deepEqual((await credentials.robotPrincipal(made.id))?.limits, PULL);
  const limits: Limit[] = [{ repositories: ["**"], verbs: ["delete"] }];
  await credentials.updateRobot("ci", { limits }, BY, anybody);
  assert.deepEqual((await credentials.robotPrincipal(made.id))?.limits, limits);
});

test("a personal token is its user, with limits: it never administrates", async () => {
  await using here = await stage();
  const { credentials, world, pass, now } = here;
  const limited = await credentials.addToken(token(), BY);
  const alice = await world.accounts.findUser("alice");
  const found = await credentials.bySecret(limited.secret);
  const principal = { ...(await world.accounts.userPrincipal(alice?.id ?? 0)), limits: PULL };
  assert.deepEqual(found, { principal, name: "alice", expiresAtMs: undefined, kind: "token", id: limited.token.id });

  const full = await credentials.addToken(token({ user: "root", limits: undefined, expiresAtMs: now() + DAY_MS }), BY);
  const root = (await credentials.bySecret(full.secret))?.principal;
  assert.ok(root?.kind === "user" && root.admin);
  assert.deepEqual(root.limits, [{ repositories: ["**"], verbs: ["pull", "create", "push", "delete"] }]);
  assert.equal(isAdmin(root), false);
  pass(DAY_MS);
  assert.equal(await credentials.bySecret(full.secret), undefined, "expired");
});

test("a personal token ends with its user, and when it is removed", async () => {
  await using here = await stage();
  const { credentials, world } = here;
  const [one, two] = [await credentials.addToken(token(), BY), await credentials.addToken(token({ name: "two" }), BY)];
  const areIn = (): Promise<boolean[]> =>
    Promise.all([one, two].map(async ({ secret }) => (await credentials.bySecret(secret)) !== undefined));
  await world.accounts.changeUser("alice", { disabled: true }, BY);
  assert.deepEqual(await areIn(), [false, false]);
  await world.accounts.changeUser("alice", { disabled: false }, BY);
  assert.deepEqual(await areIn(), [true, true]);
  await credentials.removeToken("alice", "laptop", BY);
  assert.deepEqual(await areIn(), [false, true]);
  await assert.rejects(credentials.removeToken("alice", "laptop", BY), refused(404, /alice has no token laptop/));
  await world.accounts.removeUser("alice", BY);
  assert.deepEqual(await areIn(), [false, false]);
  assert.deepEqual(await credentials.listTokens(undefined, 0, 10), []);
});

test("only the hash of a secret is kept, and nothing else tells it", async () => {
  await using here = await stage();
  const { credentials, world } = here;
  const secrets = [
    (await credentials.addRobot(robot(), BY, anybody)).secret,
    (await credentials.rotateRobot("ci", undefined, BY, anybody)).secret,
    (await credentials.addToken(token(), BY)).secret,
  ];
  assert.equal(new Set(secrets).size, 3);
  const kept = [
    ...(await world.db.all<object>("SELECT * FROM robots")),
    ...(await world.db.all<object>("SELECT * FROM tokens")),
  ];
  const told = JSON.stringify([
    kept,
    await world.db.all("SELECT * FROM events"),
    await credentials.listRobots("all", { after: "", limit: 10 }),
    await credentials.listTokens(undefined, 0, 10),
    await credentials.bySecret(secrets[1] ?? ""),
  ]);
  for (const secret of secrets) assert.ok(!told.includes(secret.slice(9)));
  for (const secret of secrets.slice(1)) assert.ok(JSON.stringify(kept).includes(hash("sha256", secret)));
  const hashes = kept.map((row) => (row as { secret: string }).secret);
  for (const wrong of [...hashes, "", "entrepot_", `entrepot_${"A".repeat(43)}`, `${secrets[1]}A`, "x".repeat(100_000)])
    assert.equal(await credentials.bySecret(wrong), undefined);
});

test("users and robots share their names, tokens are named within their user's", async () => {
  await using here = await stage();
  const { credentials, world } = here;
  await assert.rejects(credentials.addRobot(robot({ name: "alice" }), BY, anybody), refused(409, /user alice already/));
  await credentials.addRobot(robot(), BY, anybody);
  await assert.rejects(credentials.addRobot(robot(), BY, anybody), refused(409, /robot ci already/));
  await assert.rejects(world.accounts.addUser({ name: "ci", admin: false }, BY), refused(409, /robot ci already/));
  await assert.rejects(credentials.addRobot(robot({ name: "CI" }), BY, anybody), refused(400, /no name to log in by/));
  await assert.rejects(credentials.addRobot(robot({ name: "x", team: "y" }), BY, anybody), refused(404, /no team y/));

  await credentials.addToken(token({ name: "ci" }), BY);
  await credentials.addToken(token({ name: "ci", user: "root" }), BY);
  await assert.rejects(credentials.addToken(token({ name: "ci" }), BY), refused(409, /alice has a token ci already/));
  await assert.rejects(credentials.addToken(token({ user: "bob" }), BY), refused(404, /no user bob/));
  await assert.rejects(credentials.addToken(token({ name: "a/b" }), BY), refused(400, /"a\/b" is no name of a token/));
});

test("a user has a hundred tokens at most", async () => {
  await using here = await stage();
  const { credentials } = here;
  for (let n = 0; n < 100; n++) await credentials.addToken(token({ name: `t${n}` }), BY);
  await assert.rejects(credentials.addToken(token({ name: "more" }), BY), refused(409, /100 tokens: remove one/));
  const pages = [await credentials.listTokens("alice", 0, 60), await credentials.listTokens("alice", 60, 60)];
  assert.deepEqual(
    pages.flat().map(({ name }) => name),
    Array.from({ length: 100 }, (_, n) => `t${n}`),
  );
});

test("robots are listed in order of their names: all, those of teams, those of one", async () => {
  await using here = await stage();
  const { credentials, world } = here;
  await world.teams.add({ name: "other", description: "", owner: undefined }, BY);
  for (const [name, team] of [
    ["c", "team"],
    ["a", undefined],
    ["b", "other"],
    ["d", "team"],
  ] as const)
    // prettier-ignore
    await credentials.addRobot(robot({ name, team }), BY, anybody);
  const ids = new Map((await credentials.listRobots("all", { after: "", limit: 9 })).map((each) => [each.name, each]));
  const id = (name: string): number => ids.get(name)?.team?.id ?? 0;
  const listed = async (...args: Parameters<Credentials["listRobots"]>): Promise<string> =>
    (await credentials.listRobots(...args)).map(({ name }) => name).join("");
  assert.equal(await listed("all", { after: "", limit: 9 }), "abcd");
  assert.equal(await listed("all", { after: "b", limit: 1 }), "c");
  assert.equal(await listed("all", { team: "team", after: "", limit: 9 }), "cd");
  assert.equal(await listed([id("b")], { after: "", limit: 9 }), "b");
  assert.equal(await listed([id("b"), id("c")], { after: "", limit: 9 }), "bcd");
  assert.equal(await listed([id("b")], { team: "team", after: "", limit: 9 }), "");
  assert.equal(await listed([], { after: "", limit: 9 }), "");
  await world.teams.remove("team", BY);
  assert.equal(await listed("all", { after: "", limit: 9 }), "ab", "robots go with their team");
});

test("every change is recorded in words, what is no change is not", async () => {
  await using here = await stage();
  const { credentials, world } = here;
  const before = (await world.told()).length;
  const expiresAtMs = Date.UTC(2099, 0, 31);
  await credentials.addRobot(robot({ team: "team" }), BY, anybody);
  await credentials.updateRobot("ci", { disabled: true, expiresAtMs }, BY, anybody);
  await credentials.updateRobot("ci", { disabled: true, limits: PULL, description: "", expiresAtMs }, BY, anybody);
  await credentials.updateRobot("ci", { description: "builds", expiresAtMs: Infinity }, BY, anybody);
  await credentials.updateRobot("ci", { limits: [{ repositories: ["a"], verbs: ["create"] }] }, BY, anybody);
  await credentials.updateRobot("ci", {}, BY, anybody);
  await credentials.rotateRobot("ci", expiresAtMs, BY, anybody);
  await credentials.removeRobot("ci", BY, anybody);
  await credentials.addToken(token({ limits: undefined }), BY);
  await credentials.removeToken("alice", "laptop", BY);
  assert.deepEqual((await world.told()).slice(before), [
    "robot:ci: added for the team team: pull of team/**; never expires",
    "robot:ci: disabled; expires 2099-01-31T00:00:00.000Z",
    "robot:ci: never expires; description changed",
    "robot:ci: create of a",
    "robot:ci: rotated; expires 2099-01-31T00:00:00.000Z",
    "robot:ci: removed",
    "token:alice/laptop: added: pull, create, push, delete of **; never expires",
    "token:alice/laptop: removed",
  ]);
  const [last] = (await world.journal.after(0, 1000)).slice(-1);
  assert.deepEqual([last?.action, last?.outcome, last?.actor], ["access", "done", BY.actor]);
});

test("what a guard refuses leaves all as it was, and makes nobody forget who is who", async () => {
  await using here = await stage();
  const { credentials, world } = here;
  const { robot: made, secret } = await credentials.addRobot(robot({ team: "team" }), BY, anybody);
  const [events, generation] = [(await world.told()).length, world.accounts.generation];
  const seen: unknown[] = [];
  const guard = (there: unknown): never => {
    seen.push(there);
    throw new Error("not yours");
  };
  await assert.rejects(credentials.addRobot(robot({ name: "new", team: "team" }), BY, guard), /not yours/);
  await assert.rejects(credentials.updateRobot("ci", { disabled: true }, BY, guard), /not yours/);
  await assert.rejects(credentials.rotateRobot("ci", undefined, BY, guard), /not yours/);
  await assert.rejects(credentials.removeRobot("ci", BY, guard), /not yours/);
  await assert.rejects(credentials.addToken(token({ user: "bob" }), BY), /no user bob/);
  assert.deepEqual(seen, [made.team, made, made, made]);
  assert.deepEqual(await credentials.robot("ci"), made);
  assert.ok(await credentials.bySecret(secret));
  assert.deepEqual([(await world.told()).length, world.accounts.generation], [events, generation]);
});

test("the tag of a robot changes with everything but its use", async () => {
  await using here = await stage();
  const { credentials } = here;
  const tags = [(await credentials.addRobot(robot(), BY, anybody)).robot.etag];
  for (const change of [{ disabled: true }, { description: "x" }, { limits: WITHOUT_LIMITS }, { expiresAtMs: 4e12 }])
    tags.push((await credentials.updateRobot("ci", change, BY, anybody)).etag);
  tags.push((await credentials.rotateRobot("ci", undefined, BY, anybody)).robot.etag);
  await credentials.removeRobot("ci", BY, anybody);
  tags.push((await credentials.addRobot(robot(), BY, anybody)).robot.etag);
  assert.equal(new Set(tags).size, 7);
});

test("last use is written soon after, once a minute for each, and what waits at the end", async () => {
  await using here = await stage();
  const { credentials, world, pass, now } = here;
  const { robot: made } = await credentials.addRobot(robot(), BY, anybody);
  const { token: other } = await credentials.addToken(token(), BY);
  const usedAt = async (): Promise<number | undefined> => (await credentials.robot("ci"))?.usedAtMs;
  const tokenUsedAt = async (): Promise<number | undefined> =>
    (await credentials.listTokens("alice", 0, 1))[0]?.usedAtMs;
  assert.equal(await usedAt(), undefined);
  const firstMs = now();
  credentials.touch("robot", made.id);
  await until(async () => (await usedAt()) !== undefined, "it is written");
  const written = (await usedAt()) ?? 0;
  assert.ok(written >= firstMs && written < firstMs + 60_000);
  assert.equal(await tokenUsedAt(), undefined, "the token with that id was not used");

  pass(30_000);
  credentials.touch("robot", made.id);
  credentials.touch("token", other.id);
  await until(async () => (await tokenUsedAt()) !== undefined, "the token's is written");
  assert.equal(await usedAt(), written, "within the minute it is not written again");

  pass(60_000);
  const lastMs = now();
  credentials.touch("robot", made.id);
  await credentials[Symbol.asyncDispose]();
  assert.ok(((await usedAt()) ?? 0) >= lastMs);
  assert.equal((await world.told()).filter((line) => line.startsWith("robot:ci")).length, 1, "use is no event");
});
