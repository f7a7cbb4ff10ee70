import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import { Accounts } from "../../src/access/accounts.ts";
import { isLoginName } from "../../src/access/names.ts";
import { hashNewPassword, passwordFault } from "../../src/access/password-rules.ts";
import type { Clock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { Journal } from "../../src/events/journal.ts";

const BY = { actor: "root", address: "192.0.2.1", agent: "test", requestId: "r1" };

interface Stage extends AsyncDisposable {
  db: Database;
  accounts: Accounts;
  clock: { nowMs: number };
  /** What was recorded, oldest first: `user:alice added`. */
  recorded(): Promise<string[]>;
  sql(sql: string): Promise<void>;
}

async function stage(): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(await mkdtempDisposable(join(tmpdir(), "entrepot-")));
  const db = stack.use(await openSqlite(join(folder.path, "db")));
  const time = { nowMs: Date.parse("2026-01-31T12:00:00Z") };
  const clock: Clock = { now: () => time.nowMs, sleep: async () => undefined };
  const log = await createLog({ level: "silent", format: "json", destination: { write: () => undefined } });
  const { events } = parseConfig({});
  const onFault = (): void => assert.fail("nothing fails here");
  const journal = stack.use(new Journal({ db, clock, config: () => events, log, metrics: new Metrics(), onFault }));
  const accounts = stack.use(await Accounts.open({ db, clock, journal }));
  const owned = stack.move();
  return {
    db,
    accounts,
    clock: time,
    recorded: async () => {
      const rows = await db.all<{ action: string; subject: string; detail: string; actor: string }>(
        "SELECT action, subject, detail, actor FROM events ORDER BY id",
      );
      return rows.map(({ action, subject, detail, actor }) => `${actor} ${action} ${subject} ${detail}`);
    },
    sql: async (sql) => void (await db.transaction("lazy", (tx) => tx.run(sql))),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function refused(status: number, message: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.equal((error as { status?: number }).status, status, String(error));
    assert.match((error as Error).message, message);
    return true;
  };
}

test("the first user of all is the administrator, whatever was asked for; later ones are what was asked for", async () => {
  await using at = await stage();
  assert.equal(at.accounts.hasLogins, false);
  assert.equal((await at.accounts.addUser({ name: "alice", passwordHash: "h", admin: false }, BY)).admin, true);
  assert.equal(at.accounts.hasLogins, true);
  assert.equal((await at.accounts.addUser({ name: "bob", admin: false }, BY)).admin, false);
  assert.equal((await at.accounts.addUser({ name: "carol", admin: true }, BY)).admin, true);
  assert.deepEqual(await at.recorded(), [
    "root access user:alice added as an administrator",
    "root access user:bob added",
    "root access user:carol added as an administrator",
  ]);
});

test("of many who are added at once, one alone is made administrator by being the first", async () => {
  await using at = await stage();
  const names = Array.from({ length: 10 }, (_, index) => `user-${index}`);
  const added = await Promise.all(names.map((name) => at.accounts.addUser({ name, admin: false }, BY)));
  assert.equal(added.filter(({ admin }) => admin).length, 1);
});

test("the last enabled administrator can't be removed, disabled or demoted, until there is another one", async () => {
  await using at = await stage();
  const { accounts } = at;
  await accounts.addUser({ name: "alice", admin: true }, BY);
  await accounts.addUser({ name: "bob", admin: false }, BY);
  const told = refused(409, /alice is the last administrator that is enabled: make another user/);
  const before = await at.recorded();
  await assert.rejects(accounts.removeUser("alice", BY), told);
  await assert.rejects(accounts.changeUser("alice", { disabled: true }, BY), told);
  await assert.rejects(accounts.changeUser("alice", { admin: false }, BY), told);
  await assert.rejects(accounts.changeUser("alice", { admin: false, passwordHash: "new" }, BY), told);
  assert.deepEqual(await at.recorded(), before);
  assert.equal((await accounts.findUser("alice"))?.passwordHash, undefined);
  // One that is disabled is none to rely on.
  await accounts.changeUser("bob", { admin: true, disabled: true }, BY);
  await assert.rejects(accounts.changeUser("alice", { disabled: true }, BY), told);
  await accounts.changeUser("bob", { disabled: false }, BY);
  await accounts.removeUser("alice", BY);
  assert.deepEqual(
    (await accounts.listUsers("", 10)).map(({ name }) => name),
    ["bob"],
  );
});

test("of two administrators who remove each other at once, one stays", async () => {
  await using at = await stage();
  for (const name of ["alice", "bob"]) await at.accounts.addUser({ name, admin: true }, BY);
  const ends = await Promise.allSettled([at.accounts.removeUser("alice", BY), at.accounts.removeUser("bob", BY)]);
  assert.deepEqual(ends.map(({ status }) => status).toSorted(), ["fulfilled", "rejected"]);
  assert.equal((await at.accounts.listUsers("", 10)).length, 1);
});

test("whatever is done in whatever order, an enabled administrator is left, and every change has its event", async () => {
  const name = fc.constantFrom("alice", "bob", "carol");
  const step = fc.oneof(
    fc.record({ verb: fc.constant("add" as const), name, admin: fc.boolean() }),
    fc.record({ verb: fc.constant("change" as const), name, admin: fc.boolean(), disabled: fc.boolean() }),
    fc.record({ verb: fc.constant("remove" as const), name }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 20 }), async (steps) => {
      await using at = await stage();
      const { accounts } = at;
      let hadUser = false;
      for (const one of steps) {
        const before = JSON.stringify(await accounts.listUsers("", 10));
        const events = (await at.recorded()).length;
        const work = {
          add: () => accounts.addUser({ name: one.name, admin: "admin" in one && one.admin }, BY),
          change: () => {
            const { admin, disabled } = one as { admin: boolean; disabled: boolean };
            return accounts.changeUser(one.name, { admin, disabled }, BY);
          },
          remove: () => accounts.removeUser(one.name, BY),
        }[one.verb];
        await work().catch((error: unknown) => assert.match(String(error), /last administrator|no user|already/));
        const users = await accounts.listUsers("", 10);
        assert.equal(JSON.stringify(users) !== before, (await at.recorded()).length > events);
        hadUser ||= users.length > 0;
        assert.equal(
          users.some(({ admin, disabled }) => admin && !disabled),
          hadUser,
        );
        assert.equal(accounts.hasLogins, hadUser);
      }
    }),
    { numRuns: 25 },
  );
});

test("users and robots share one set of names", async () => {
  await using at = await stage();
  await at.accounts.addUser({ name: "alice", admin: true }, BY);
  await at.sql("INSERT INTO robots (name, limits, created_at) VALUES ('ci', '[]', 0)");
  const add = (name: string): Promise<unknown> => at.accounts.addUser({ name, admin: false }, BY);
  await assert.rejects(add("alice"), refused(409, /there is a user alice already/));
  await assert.rejects(add("ci"), refused(409, /there is a robot ci already/));
  await assert.rejects(add("operator"), refused(409, /the registry's own/));
  for (const name of ["", "Alice", "a b", "a..b", "-a", "a-", "a/b", "a:b", "a".repeat(65), "ä", "a\n"])
    await assert.rejects(add(name), refused(400, /is no name to log in by/), name);
  assert.equal(isLoginName("a".repeat(64)), true);
  assert.equal(isLoginName("a.b_c-1"), true);
});

test("removing a user takes its tokens, its place in teams and its empty namespace along", async () => {
  await using at = await stage();
  const { accounts } = at;
  await accounts.addUser({ name: "alice", admin: true }, BY);
  const { id } = await accounts.addUser({ name: "bob", admin: false }, BY);
  await at.sql("INSERT INTO teams (id, name, created_at) VALUES (1, 'backend', 0)");
  await at.sql(`INSERT INTO team_members (team_id, user_id, role, added_at) VALUES (1, ${id}, 'owner', 0)`);
  await at.sql(`INSERT INTO tokens (user_id, name, secret, created_at) VALUES (${id}, 'laptop', 's', 0)`);
  await at.sql(`INSERT INTO namespaces (name, user_id, created_at) VALUES ('bob', ${id}, 0)`);
  await at.sql(
    "INSERT INTO grants (kind, name, team_id, role, granted_at) VALUES ('namespace', 'bob', 1, 'viewer', 0)",
  );
  await at.sql("INSERT INTO namespace_content (namespace, digest, size, links) VALUES ('bob', 'sha256:x', 0, 1)");
  await assert.rejects(accounts.removeUser("bob", BY), refused(409, /namespace bob of the user bob holds content/));
  assert.deepEqual(await accounts.teamsOf(id), [{ name: "backend", role: "owner" }]);
  await at.sql("DELETE FROM namespace_content");
  await accounts.removeUser("bob", BY);
  for (const table of ["team_members", "tokens", "namespaces", "grants"])
    assert.deepEqual(await at.db.all(`SELECT * FROM ${table}`), [], table);
  assert.equal((await at.recorded()).at(-1), "root access user:bob removed");
  await assert.rejects(accounts.removeUser("bob", BY), refused(404, /there is no user bob/));
});

test("who a user is is remembered until anything changes, and not beyond", async () => {
  await using at = await stage();
  const { accounts } = at;
  const { id } = await accounts.addUser({ name: "alice", admin: true }, BY);
  await accounts.addUser({ name: "bob", admin: true }, BY);
  const first = await accounts.userPrincipal(id);
  assert.deepEqual(first, { kind: "user", id, name: "alice", admin: true, teams: new Map(), limits: undefined });
  assert.equal(await accounts.userPrincipal(id), first);
  let told = 0;
  const end = accounts.onChange(() => (told += 1));
  const { generation } = accounts;
  await at.sql("INSERT INTO teams (id, name, created_at) VALUES (1, 'backend', 0)");
  await at.sql(`INSERT INTO team_members (team_id, user_id, role, added_at) VALUES (1, ${id}, 'viewer', 0)`);
  accounts.changed();
  assert.deepEqual((await accounts.userPrincipal(id))?.teams, new Map([[1, "viewer"]]));
  await accounts.changeUser("alice", { disabled: true }, BY);
  assert.equal(await accounts.userPrincipal(id), undefined);
  await accounts.changeUser("alice", { disabled: false, admin: false }, BY);
  assert.equal((await accounts.userPrincipal(id))?.admin, false);
  assert.equal(told, 3);
  assert.ok(accounts.generation > generation);
  end();
  await accounts.removeUser("alice", BY);
  assert.equal(await accounts.userPrincipal(id), undefined);
  assert.equal(told, 3);
});

test("what was read while something changed is not remembered", async () => {
  await using at = await stage();
  const { id } = await at.accounts.addUser({ name: "alice", admin: true }, BY);
  const reading = at.accounts.userPrincipal(id);
  at.accounts.changed();
  const read = await reading;
  assert.notEqual(await at.accounts.userPrincipal(id), read);
});

test("robots count among those who can log in", async () => {
  await using at = await stage();
  await at.sql("INSERT INTO robots (name, limits, created_at) VALUES ('ci', '[]', 0)");
  at.accounts.changed();
  await new Promise(setImmediate);
  assert.equal(at.accounts.hasLogins, true);
  assert.equal(at.accounts.hasUsers, false);
});

test("a change tells the fact alone, never the password or its hash", async () => {
  await using at = await stage();
  await at.accounts.addUser({ name: "alice", passwordHash: "$2b$10$first", admin: true }, BY);
  at.clock.nowMs += 5000;
  const changed = await at.accounts.changeUser("alice", { passwordHash: "$2b$10$second" }, BY);
  assert.equal(changed.passwordAtMs, at.clock.nowMs);
  assert.equal((await at.accounts.findUser("alice"))?.passwordHash, "$2b$10$second");
  assert.doesNotMatch(JSON.stringify([changed, await at.accounts.listUsers("", 10)]), /\$2b\$/);
  const rows = await at.db.all("SELECT * FROM events");
  assert.doesNotMatch(JSON.stringify(rows), /\$2b\$/);
  assert.deepEqual((await at.recorded()).at(-1), "root access user:alice password changed");
  const events = await at.recorded();
  await at.accounts.changeUser("alice", { admin: true, disabled: false }, BY);
  assert.deepEqual(await at.recorded(), events, "what is so already is no change");
});

test("a guard that objects keeps everything as it is", async () => {
  await using at = await stage();
  for (const name of ["alice", "bob"]) await at.accounts.addUser({ name, admin: true }, BY);
  const guard = (): never => {
    throw new Error("no");
  };
  await assert.rejects(at.accounts.changeUser("bob", { admin: false }, BY, guard), /^Error: no$/);
  await assert.rejects(at.accounts.removeUser("bob", BY, guard), /^Error: no$/);
  assert.equal((await at.accounts.findUser("bob"))?.admin, true);
});

test("the last login is written down soon, and again after a minute", async () => {
  await using at = await stage();
  const { id } = await at.accounts.addUser({ name: "alice", admin: true }, BY);
  const used = async (): Promise<number | undefined> => (await at.accounts.user("alice"))?.usedAtMs;
  const firstMs = at.clock.nowMs;
  const settled = async (expected: number): Promise<void> => {
    for (let turn = 0; turn < 1000 && (await used()) !== expected; turn += 1) await new Promise(setImmediate);
    assert.equal(await used(), expected);
  };
  at.accounts.touchUser(id);
  await settled(firstMs);
  at.clock.nowMs += 61_000;
  at.accounts.touchUser(id);
  await settled(at.clock.nowMs);
});

test("a list goes on where the page before ended", async () => {
  await using at = await stage();
  const names = ["b", "a", "c.d", "c-d", "e"];
  for (const name of names) await at.accounts.addUser({ name, admin: false }, BY);
  const found: string[] = [];
  for (let after = ""; ;) {
    const page = await at.accounts.listUsers(after, 2);
    if (page.length === 0) break;
    found.push(...page.map(({ name }) => name));
    after = found.at(-1) ?? "";
  }
  assert.deepEqual(found, names.toSorted());
});

test("a password is long enough, no longer than bcrypt reads, not the name, and none of the commonest", () => {
  const fault = (password: string, minLength = 12): string | undefined =>
    passwordFault(password, "alice-at-work", minLength);
  assert.equal(fault("correct horse battery"), undefined);
  assert.match(String(fault("short")), /shorter than 12 characters \(access\.passwordMinLength\)/);
  assert.match(String(fault("")), /shorter/);
  // Characters are counted as people count them, bytes as bcrypt does.
  assert.match(String(fault("😀".repeat(6))), /shorter/);
  assert.equal(fault("😀".repeat(12)), undefined);
  assert.match(String(fault("😀".repeat(19))), /has 76 bytes in UTF-8, and 72 is the most/);
  assert.equal(fault("a-".repeat(36)), undefined);
  assert.match(String(fault(`${"a-".repeat(36)}a`)), /has 73 bytes/);
  assert.match(String(fault("Alice-At-Work")), /is the name of the user/);
  for (const common of ["password1234", "Qwertyuiop123", "ADMINADMINADMIN"])
    assert.match(String(fault(common)), /commonest/);
  assert.match(String(fault("12345678", 8)), /commonest/);
  for (const control of ["\n", "\t", "\0", "\u007f"])
    assert.match(String(fault(`long enough ${control} it is`)), /control character/);
});

test("what may be a password can be hashed, and never has more bytes than bcrypt reads", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.string({ unit: "binary", maxLength: 90 }),
      fc.integer({ min: 8, max: 72 }),
      async (password, least) => {
        const hashed: string[] = [];
        const passwords = { hash: async (text: string) => `hash of ${hashed.push(text)}` };
        const deps = { passwords, access: () => ({ passwordMinLength: least }) };
        const end = await hashNewPassword(deps, "alice", password).catch((error: unknown) => error as Error);
        if (typeof end !== "string") {
          assert.match(end.message, /^password: (?:is|has|holds) /);
          assert.deepEqual(hashed, []);
          return;
        }
        assert.deepEqual(hashed, [password]);
        assert.ok(Buffer.byteLength(password) <= 72 && Array.from(password).length >= least);
      },
    ),
  );
});
