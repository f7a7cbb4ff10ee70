import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { digestOf, hexOf } from "../../src/oci/digest.ts";

test("a commit is durable before it is told: fsync of the file, rename, fsync of the folder", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-store-"));
  const trace = join(root, "trace");
  const store = fileURLToPath(new URL("../../src/store/blobs-fs.ts", import.meta.url));
  const content = "a blob";
  const digest = digestOf(Buffer.from(content));
  const script = `
    import { writeSync } from "node:fs";
    const { FileBlobStore } = await import(${JSON.stringify(store)});
    const store = await FileBlobStore.open(${JSON.stringify(join(root, "data"))});
    const { staged } = await store.stage(${JSON.stringify(digest)});
    await staged.write([Buffer.from(${JSON.stringify(content)})], 0);
    await staged.commit();
    writeSync(1, "committed");`;
  try {
    const args = ["-f", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,write", "-o", trace];
    await promisify(execFile)("strace", [...args, process.execPath, "--input-type=module", "-e", script]);
    const lines = (await readFile(trace, "utf8")).split("\n");
    const at = (pattern: RegExp): number => lines.findIndex((line) => pattern.test(line));
    const hex = hexOf(digest);
    const steps = [
      at(new RegExp(`f(?:data)?sync\\(\\d+<.*/staging/sha256-${hex}\\.part>`)),
      at(new RegExp(`rename.*/staging/sha256-${hex}\\.part".*/blobs/sha256/${hex.slice(0, 2)}/${hex}"`)),
      lines.findLastIndex((line) => new RegExp(`fsync\\(\\d+<.*/blobs/sha256/${hex.slice(0, 2)}>`).test(line)),
      at(/write\(1<.*"committed"/),
    ];
    assert.ok(
      steps.every((step, index) => step >= 0 && step > (steps[index - 1] ?? -1)),
      `${steps.join()}\n${lines.join("\n")}`,
    );
    // A folder that was made for it has a name that has to last, too.
    assert.ok(at(/fsync\(\d+<.*\/blobs\/sha256>/) >= 0);
  } finally {
    await rm(root, { recursive: true });
  }
});

/** Runs a script that has an open database `db`, under strace. @returns its output and the system calls that were traced, in their order */
async function traceDatabase(script: string, expressions: string[]): Promise<{ output: string; calls: string[] }> {
  const root = await mkdtemp(join(tmpdir(), "entrepot-db-"));
  const trace = join(root, "trace");
  const sqlite = fileURLToPath(new URL("../../src/db/sqlite.ts", import.meta.url));
  const whole = `
    import { writeSync } from "node:fs";
    const { openSqlite } = await import(${JSON.stringify(sqlite)});
    const file = ${JSON.stringify(join(root, "entrepot.db"))};
    const db = await openSqlite(file);
    const add = (name) => db.transaction("durable",
      (tx) => tx.run("INSERT INTO repositories (name, created_at) VALUES (:name, 0)", { name }));
    writeSync(1, "begin");
    ${script}
    writeSync(1, "end");
    await db[Symbol.asyncDispose]();`;
  try {
    // A file: threads would inherit the flags of a script on the command line, and refuse to start.
    const file = join(root, "script.mjs");
    await writeFile(file, whole);
    const args = ["-f", "-y", ...expressions.flatMap((expression) => ["-e", expression]), "-o", trace];
    const run = [...args, process.execPath, file];
    // One thread for files: strace counts calls by the thread.
    const { stdout } = await promisify(execFile)("strace", run, { env: { ...process.env, UV_THREADPOOL_SIZE: "1" } });
    const lines = (await readFile(trace, "utf8")).split("\n");
    const at = (word: string): number => lines.findIndex((line) => line.includes(`write(1<`) && line.includes(word));
    return { output: stdout, calls: lines.slice(at('"begin"') + 1, at('"end"')) };
  } finally {
    await rm(root, { recursive: true });
  }
}

test("a durable transaction is told after its part of the log was synced, and one sync serves all who wait", async () => {
  const { calls } = await traceDatabase(`await Promise.all(Array.from({ length: 20 }, (_, i) => add("r" + i)));`, [
    "trace=fdatasync,pwrite64,write",
  ]);
  const lastCommit = calls.findLastIndex((line) => /pwrite64\(\d+<.*-wal>/.test(line));
  const syncs = calls.flatMap((line, index) => (/fdatasync\(\d+<.*-wal>/.test(line) ? [index] : []));
  assert.ok(lastCommit >= 0 && lastCommit < (syncs.at(-1) ?? -1), calls.join("\n"));
  assert.match(calls.slice(syncs.at(-1)).join("\n"), /fdatasync(?:\(.*| resumed>\)) *= 0/);
  assert.ok(syncs.length <= 2, `${syncs.length} syncs`);
});

test("once the log did not reach the disk, nothing is called durable until a restart, and reading goes on", async () => {
  const { output } = await traceDatabase(
    `for (const name of ["a", "b"]) await add(name).catch((error) => writeSync(1, error.message + "\\n"));
     writeSync(1, JSON.stringify(await db.get("SELECT 1 AS one")));`,
    ["trace=fdatasync,write", "inject=fdatasync:error=EIO:when=1"],
  );
  assert.match(output, /(?:.*did not reach the disk: restart entrepot.*\n){2}\{"one":1\}/);
});

test("the log is moved into the database by another thread than the one that serves", async () => {
  const { calls } = await traceDatabase(
    `const { statSync } = await import("node:fs");
     const log = file + "-wal";
     for (let i = 0; i < 700; i++) await add("r" + i);
     for (let i = 0; i < 20000 && statSync(log).size > 4 * 1024 * 1024; i++) await add("meanwhile" + i);`,
    ["trace=pwrite64,fsync,fdatasync,write"],
  );
  const moves = calls.filter((line) => /(?:pwrite64|sync)\(\d+<[^>]*\/entrepot\.db>/.test(line));
  const threads = new Set(moves.map((line) => line.split(" ", 1)[0]));
  const commits = new Set(
    calls.filter((line) => /pwrite64\(\d+<[^>]*-wal>/.test(line)).map((line) => line.split(" ", 1)[0]),
  );
  assert.equal(threads.size, 1, `${moves.length} calls of ${threads.size} threads`);
  assert.ok(threads.isDisjointFrom(commits), `${[...threads].join()} moved, ${[...commits].join()} committed`);
});
