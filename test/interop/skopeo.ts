import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { run } from "./machine.ts";

/** Copies an image, every platform of it, into a registry. @param options of `skopeo copy` */
export async function copyIn(source: string, name: string, options: readonly string[] = []): Promise<void> {
  const target = `docker://${name}`;
  await run("skopeo", ["copy", "--quiet", "--all", "--dest-tls-verify=false", ...options, source, target]);
}

/** Copies an image with all its platforms into a folder; skopeo checks each blob. @returns the digest of what the tag names */
export async function copyOut(name: string, folder: string): Promise<Digest> {
  await run("skopeo", ["copy", "--quiet", "--all", "--src-tls-verify=false", `docker://${name}`, `dir:${folder}`]);
  return digestOf(await readFile(join(folder, "manifest.json")));
}

/** The manifest of a name, byte for byte. */
export function inspect(name: string): Promise<string> {
  return run("skopeo", ["inspect", "--raw", "--tls-verify=false", `docker://${name}`]);
}

/** The tags of a repository, in the registry's order. */
export async function listTags(repository: string): Promise<string[]> {
  const listed = await run("skopeo", ["list-tags", "--tls-verify=false", `docker://${repository}`]);
  return (JSON.parse(listed) as { Tags: string[] }).Tags;
}
