import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A folder that holds these files and is gone at the end of the scope. */
export async function folderWith(
  files: Record<string, string>,
): Promise<AsyncDisposable & { path(name: string): string }> {
  const folder = await mkdtempDisposable(join(tmpdir(), "entrepot-config-"));
  for (const [name, text] of Object.entries(files)) await writeFile(join(folder.path, name), text);
  return {
    path: (name) => join(folder.path, name),
    [Symbol.asyncDispose]: () => folder.remove(),
  };
}
