import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmod, mkdtemp, rename, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { hashSync } from "bcryptjs";
import * as fc from "fast-check";
import { Htpasswd, parseHtpasswd } from "../../src/access/htpasswd.ts";
import { createLog } from "../../src/base/log.ts";
import { until } from "../kit/registry.ts";

const HASH = hashSync("bee", 4).replace("$2b$", "$2y$");
const OTHER = hashSync("other", 4);
const withCost = (cost: number): string => HASH.replace("$04$", `$${String(cost).padStart(2, "0")}$`);

test("every line that is name and bcrypt hash counts, with comments, blank lines, CRLF and a byte order mark around it", () => {
  const { users, faults } = parseHtpasswd(
    `\uFEFFbusy:${HASH}\r\n# people\r\n\r\n  bob@example.com:${OTHER}  \r\nÜrsel:${HASH}`,
  );
  assert.deepEqual(
    [...users],
    [
      ["busy", HASH],
      ["bob@example.com", OTHER],
      ["Ürsel", HASH],
    ],
  );
  assert.deepEqual(faults, []);
});

test("each line that does not count is named by its number with cause and remedy, never with its text, and the rest works", () => {
  const lines: [string, RegExp][] = [
    ["hunter2-without-a-name", /no colon.*htpasswd -B/],
    [`:${HASH}`, /no name/],
    ["alice:", /no hash/],
    ["alice:$apr1$uN5wRkBt$6m4Ob5kJr0T4DqGxg3l0a1", /MD5, not bcrypt.*htpasswd -B/],
    ["alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", /SHA-1/],
    ["alice:$6$rounds=5000$saltsalt$hash", /SHA-2/],
    ["alice:hunter2", /no bcrypt/],
    [`alice:${withCost(3)}`, /cost is 3/],
    [`alice:${withCost(14)}`, /cost is 14, 4 times the work/],
    [`alice:${withCost(31)}`, /cost is 31/],
    [`${"x".repeat(257)}:${HASH}`, /longer than 256/],
    [`al\u0007ice:${HASH}`, /control characters/],
    [`al\uFFFDice:${HASH}`, /UTF-8/],
  ];
  const { users, faults } = parseHtpasswd([`first:${HASH}`, ...lines.map(([line]) => line), `last:${HASH}`].join("\n"));
  assert.deepEqual([...users.keys()], ["first", "last"]);
  assert.equal(faults.length, lines.length);
  for (const [index, { line, fault }] of faults.entries()) {
    assert.equal(line, index + 2);
    assert.match(fault, lines[index]?.[1] ?? /never/);
    assert.doesNotMatch(fault, /hunter2|\$2y|\$apr1/);
  }
});

test("attack: cost 14 in the file: a cost of 4 to 12 counts, dearer ones would be a way to keep the daemon busy", () => {
  for (const cost of [4, 5, 10, 12]) assert.equal(parseHtpasswd(`a:${withCost(cost)}`).users.size, 1);
  for (const cost of [0, 3, 13, 14, 31]) assert.equal(parseHtpasswd(`a:${withCost(cost)}`).users.size, 0);
});

test("a last line that was cut short does not count", () => {
  const { users, faults } = parseHtpasswd(`alice:${HASH}\nbob:${HASH.slice(0, 31)}`);
  assert.deepEqual([...users.keys()], ["alice"]);
  assert.deepEqual(faults, [
    { line: 2, fault: 'its hash has 31 characters in place of 60: write it with "htpasswd -B"' },
  ]);
});

test("of two lines with one name the last one counts, as in docker-registry, and the first one is told of", () => {
  const { users, faults } = parseHtpasswd(`alice:${HASH}\nbob:${HASH}\nalice:${OTHER}\n`);
  assert.equal(users.get("alice"), OTHER);
  assert.equal(faults.length, 1);
  assert.match(faults[0]?.fault ?? "", /named again in line 3/);
  assert.equal(faults[0]?.line, 1);
});

test("whatever a file holds, its good lines count", () => {
  // With a colon in front of it, no text is a good line; line ends would make several.
  const junk = fc.string({ unit: "binary" }).map((text) => `:${text.replaceAll(/[\n\r\u2028\u2029]/g, "")}`);
  fc.assert(
    fc.property(fc.array(junk), fc.array(junk), (before, after) => {
      const { users, faults } = parseHtpasswd([...before, `alice:${HASH}`, ...after].join("\n"));
      assert.deepEqual([...users], [["alice", HASH]]);
      assert.equal(faults.length, before.length + after.length);
    }),
  );
});

/** A clock whose sleeps end when the test says so. */
class Stepped {
  #wake: (() => void) | undefined;
  now = (): number => Date.now();
  sleep = (_ms: number, signal?: AbortSignal): Promise<void> => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#wake = resolve;
    signal?.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
    return promise;
  };
  /** Ends the sleep once there is one, and comes back when the next one has begun. */
  async step(): Promise<void> {
    await until(() => this.#wake !== undefined, "the file is watched");
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
    await until(() => this.#wake !== undefined, "it was looked at");
  }
}

interface Watched extends AsyncDisposable {
  folder: string;
  path: string;
  file: Htpasswd;
  clock: Stepped;
  lines: string[];
}

async function watch(text: string, link = false): Promise<Watched> {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-"));
  const path = join(folder, "htpasswd");
  if (link) {
    await writeFile(join(folder, "v1"), text);
    await symlink(join(folder, "v1"), path);
  } else await writeFile(path, text);
  const clock = new Stepped();
  const lines: string[] = [];
  const log = await createLog({
    level: "info",
    format: "json",
    destination: { write: (line: string) => void lines.push(line) },
  });
  const file = await Htpasswd.open({ path, role: () => "contributor", clock, log });
  return {
    folder,
    path,
    file,
    clock,
    lines,
    [Symbol.asyncDispose]: async () => {
      await file[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

test("a file that was written anew, exchanged by a rename, or is a link to another one now, is read again", async () => {
  await using watched = await watch(`alice:${HASH}\n`, true);
  const { folder, path, file, clock } = watched;
  let changes = 0;
  file.onChange(() => (changes += 1));
  await clock.step();
  assert.equal(changes, 0);

  await writeFile(path, `alice:${HASH}\nbob:${HASH}\n`);
  await clock.step();
  await clock.step();
  assert.deepEqual(file.principal("bob"), { kind: "file", name: "bob", role: "contributor" });

  // As an orchestrator does with a configuration: a new file, and the link is exchanged.
  await writeFile(join(folder, "v2"), `carol:${HASH}\n`);
  await symlink(join(folder, "v2"), join(folder, "link"));
  await rename(join(folder, "link"), path);
  await clock.step();
  await clock.step();
  assert.equal(file.hashOf("carol"), HASH);
  assert.equal(file.hashOf("alice"), undefined);

  await writeFile(join(folder, "new"), `dave:${HASH}\n`);
  await rename(join(folder, "new"), path);
  await clock.step();
  await clock.step();
  assert.equal(file.hashOf("dave"), HASH);
  assert.equal(changes, 3);
});

test("a file that is being written is read once it has come to rest", async () => {
  await using watched = await watch(`alice:${HASH}\n`);
  const { path, file, clock } = watched;
  await truncate(path);
  await clock.step();
  assert.equal(file.hashOf("alice"), HASH);
  await writeFile(path, `alice:${OTHER}\n`);
  await clock.step();
  assert.equal(file.hashOf("alice"), HASH);
  await clock.step();
  assert.equal(file.hashOf("alice"), OTHER);
});

test("a reload reads it at once", async () => {
  await using watched = await watch(`alice:${HASH}\n`);
  await writeFile(watched.path, `bob:${HASH}\n`);
  await watched.file.reload();
  assert.equal(watched.file.hashOf("bob"), HASH);
});

test("while the file can't be read, what was read last counts, and the log tells it once", async () => {
  await using watched = await watch(`alice:${HASH}\n`);
  const { path, file, clock, lines } = watched;
  await rm(path);
  for (let i = 0; i < 4; i++) await clock.step();
  assert.equal(file.hashOf("alice"), HASH);
  const told = lines.filter((line) => line.includes("can't be read"));
  assert.equal(told.length, 1);
  assert.match(told[0] ?? "", /ENOENT/);
  await writeFile(path, `bob:${HASH}\n`);
  for (let i = 0; i < 2; i++) await clock.step();
  assert.equal(file.hashOf("bob"), HASH);
});

test("a file that only its reader's group may read, on a read-only mount, is read; it is never written", async () => {
  await using watched = await watch(`alice:${HASH}\n`);
  await chmod(watched.path, 0o440);
  await watched.file.reload();
  assert.equal(watched.file.hashOf("alice"), HASH);
});

test("lines that do not count are in the log with their numbers, and without their secrets", async () => {
  await using watched = await watch(`alice:$apr1$uN5wRkBt$6m4Ob5kJr0T4DqGxg3l0a1\nhunter2\nbob:${HASH}\n`);
  const warnings = watched.lines.filter((line) => line.includes("does not count"));
  assert.equal(warnings.length, 2);
  assert.match(warnings[0] ?? "", /"line":1,.*MD5/);
  assert.match(warnings[1] ?? "", /"line":2,.*no colon/);
  assert.doesNotMatch(watched.lines.join(""), /apr1|hunter2|\$2y/);
});

test("a file that is not there keeps the daemon from starting, with a remedy", async () => {
  const log = await createLog({ level: "silent", format: "json" });
  await assert.rejects(
    Htpasswd.open({ path: "/nonexistent/htpasswd", role: () => "viewer", clock: new Stepped(), log }),
    /access\.htpasswd\.path: \/nonexistent\/htpasswd can't be read \(ENOENT\): make it with "htpasswd -Bc/,
  );
});

test("what the program htpasswd writes counts", async (t) => {
  let text: string;
  try {
    text = execFileSync("htpasswd", ["-Bbn", "busy", "bee"], { encoding: "utf8" });
  } catch {
    return t.skip("htpasswd is not installed");
  }
  const { users, faults } = parseHtpasswd(text);
  assert.deepEqual([...users.keys()], ["busy"]);
  assert.deepEqual(faults, []);
  return undefined;
});
