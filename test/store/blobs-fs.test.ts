import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
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

test("a partial file that is shorter than its name says is taken as it is, not filled up", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-store-"));
  try {
    const store = await FileBlobStore.open(root);
    const digest = digestOf(Buffer.from("x"));
    await writeFile(join(root, `staging/sha256-${hexOf(digest)}.part-5000`), Buffer.alloc(3000));
    const { staged, sizeBytes } = await store.stage(digest);
    assert.equal(sizeBytes, 3000);
    await staged.discard();
    await staged.close();
    assert.deepEqual(await readdir(join(root, "staging")), []);
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

test("whether an upload is there can't be told: that is an error, not its absence", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-store-"));
  try {
    const store = await FileBlobStore.open(root);
    await rm(join(root, "uploads"), { recursive: true });
    await writeFile(join(root, "uploads"), "a file where the folder should be");
    await assert.rejects(store.uploadSize(randomUUID()), { code: "ENOTDIR" });
    await assert.rejects(store.uploads(), { code: "ENOTDIR" });
  } finally {
    await rm(root, { recursive: true });
  }
});
