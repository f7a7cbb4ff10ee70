import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { chmod, chown, mkdir, mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { digestOf } from "../../src/oci/digest.ts";
import { FileThreads, type FileTask } from "../../src/store/file-threads.ts";

const BYTES = Buffer.from("content");
const DIGEST = digestOf(BYTES);
/** Another file system than that of temporary files. */
const ELSEWHERE = "/dev/shm";
const NOBODY = 65_534;

async function makeFolder(parent = tmpdir()): Promise<AsyncDisposable & { path: string }> {
  const path = await mkdtemp(join(parent, "entrepot-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

function placing(path: string, place: string): FileTask {
  const file = { digest: DIGEST, path, sizeBytes: BYTES.length };
  return { verb: "place", file, place, temporary: `${place}.part`, syncedAtMs: undefined };
}

test(
  "a failure is told when no thread looks at a file any more, and nothing else is begun",
  { skip: availableParallelism() < 2 && "it takes two threads" },
  async () => {
    await using here = await makeFolder();
    const at = (name: string): string => join(here.path, name);
    await writeFile(at("source"), BYTES);
    const longBytes = 128 * 1024 ** 2;
    await writeFile(at("long"), "");
    await truncate(at("long"), longBytes);
    const tasks: FileTask[] = [
      // The first message fails at once; then the second one is still read.
      ...Array.from({ length: 32 }, () => placing(at("source"), at("not/there"))),
      { verb: "prove", file: { digest: DIGEST, path: at("long"), sizeBytes: longBytes } },
      placing(at("source"), at("second")),
      ...Array.from({ length: 30 }, () => placing(at("source"), at("second"))),
      placing(at("source"), at("third")),
    ];
    await using threads = new FileThreads();
    await assert.rejects(threads.run(tasks, new AbortController().signal), { code: "ENOENT" });
    assert.deepEqual([existsSync(at("second")), existsSync(at("third"))], [true, false]);
  },
);

test(
  "a file that nobody may write to is copied by a user without privileges",
  { skip: !isElsewhere() && "it takes a second file system" },
  async () => {
    await using source = await makeFolder(ELSEWHERE);
    // Not where temporary files are told to be: nobody else may be let in there.
    await using here = await makeFolder("/tmp");
    const isRoot = process.getuid?.() === 0;
    await chmod(source.path, 0o755);
    await writeFile(join(source.path, "data"), BYTES, { mode: 0o444 });
    await mkdir(join(here.path, "store"));
    await chmod(here.path, 0o755);
    if (isRoot) await chown(join(here.path, "store"), NOBODY, NOBODY);
    const place = join(here.path, "store", "blob");
    const script = `
      import { FileThreads } from ${JSON.stringify(new URL("../../src/store/file-threads.ts", import.meta.url))};
      await using threads = new FileThreads();
      const tasks = ${JSON.stringify([placing(join(source.path, "data"), place)])};
      console.log(JSON.stringify(await threads.run(tasks, new AbortController().signal)));`;
    await writeFile(join(here.path, "place.mjs"), script);
    const { stdout } = await promisify(execFile)(process.execPath, ["place.mjs"], {
      cwd: here.path,
      ...(isRoot ? { uid: NOBODY, gid: NOBODY } : {}),
    });
    assert.deepEqual(JSON.parse(stdout), [{ copied: true }]);
    assert.deepEqual(await readFile(place), BYTES);
  },
);

function isElsewhere(): boolean {
  return existsSync(ELSEWHERE) && statSync(ELSEWHERE).dev !== statSync(tmpdir()).dev;
}
