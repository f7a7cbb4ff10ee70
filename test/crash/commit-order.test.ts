import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
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
