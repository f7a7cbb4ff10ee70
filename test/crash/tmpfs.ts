import { execFile } from "node:child_process";
import { mkdtemp, rm, statfs, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** A small file system of its own, which can really be full. */
export interface SmallDisk extends AsyncDisposable {
  readonly path: string;
  /** Takes all free space but so many bytes. */
  fill(exceptBytes: number): Promise<void>;
  /** Gives back what {@link fill} took. */
  release(): Promise<void>;
  freeBytes(): Promise<number>;
}

/** @throws Error where this user can't mount: the tests that need a full disk then fail, and say why */
export async function mountSmallDisk(sizeBytes: number): Promise<SmallDisk> {
  const path = await mkdtemp(join(tmpdir(), "entrepot-disk-"));
  await run("mount", ["-t", "tmpfs", "-o", `size=${sizeBytes}`, "tmpfs", path]).catch(async (cause: unknown) => {
    await rm(path, { recursive: true });
    throw new Error("a test of a full disk has to mount a tmpfs, which takes root", { cause });
  });
  const filler = join(path, "filler");
  const freeBytes = async (): Promise<number> => {
    const { bavail, bsize } = await statfs(path);
    return bavail * bsize;
  };
  return {
    path,
    freeBytes,
    fill: async (exceptBytes) => {
      await writeFile(filler, "");
      const bytes = Math.max(0, (await freeBytes()) - exceptBytes);
      await writeFile(filler, Buffer.alloc(bytes));
    },
    release: () => truncate(filler, 0),
    [Symbol.asyncDispose]: async () => {
      await run("umount", [path]);
      await rm(path, { recursive: true });
    },
  };
}
