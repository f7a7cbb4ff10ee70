import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readlink, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { FileBlobStore } from "../../src/store/blobs-fs.ts";
import { BlobFault } from "../../src/store/blobs.ts";
import { testBlobStore } from "../contracts/blobs.ts";

function pathOf(root: string, digest: Digest): string {
  const hex = hexOf(digest);
  return join(root, "blobs", digest.slice(0, 6), hex.slice(0, 2), hex);
}

testBlobStore("files", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-store-"));
  const store = await FileBlobStore.open(root);
  return {
    store,
    cut: (digest, sizeBytes) => truncate(pathOf(root, digest), sizeBytes),
    reopen: () => FileBlobStore.open(root),
    [Symbol.asyncDispose]: async () => {
      // Every descriptor of the folder has been closed.
      const open = await Promise.all(
        (await readdir("/proc/self/fd").catch(() => [])).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "")),
      );
      assert.deepEqual(
        open.filter((path) => path.startsWith(root)),
        [],
      );
      await rm(root, { recursive: true });
    },
  };
});

test("what is no blob lies in the tree: it is passed over", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-store-"));
  try {
    const store = await FileBlobStore.open(root);
    await writeFile(join(root, "blobs/sha256/stray"), "x");
    await mkdir(join(root, "blobs/sha256/ab"));
    await writeFile(join(root, "blobs/sha256/ab/note.txt"), "x");
    await writeFile(join(root, "staging/note.txt"), "x");
    for await (const { digest } of store.list()) assert.fail(digest);
    assert.deepEqual(await store.leftovers(), []);
  } finally {
    await rm(root, { recursive: true });
  }
});

test("a folder in the place of a file is no blob, whatever its size", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-store-"));
  try {
    const store = await FileBlobStore.open(root);
    const digest = digestOf(Buffer.from("x"));
    await mkdir(pathOf(root, digest), { recursive: true });
    for (const sizeBytes of [0, 40, 60, 4096]) {
      await assert.rejects(
        store.open(digest, sizeBytes),
        (error) => error instanceof BlobFault && error.fault === "corrupt",
      );
    }
    await store.quarantine(digest);
    await assert.rejects(store.open(digest, 1), (error) => error instanceof BlobFault && error.fault === "missing");
  } finally {
    await rm(root, { recursive: true });
  }
});
