import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { digestOf, type Digest } from "../../src/oci/digest.ts";
import { MEDIA_TYPES } from "../../src/oci/manifest.ts";
import { run } from "./machine.ts";

/** An image in the OCI layout, by its tag there. */
export interface Sample {
  /** What `skopeo copy` reads it from: `oci:/folder:tag`. */
  readonly source: string;
  readonly digest: Digest;
  /** Of the manifest and all that it leads to, on linux/amd64. */
  readonly sizeBytes: number;
  /** On every platform. */
  readonly totalBytes: number;
}

interface Descriptor {
  mediaType: string;
  digest: Digest;
  size: number;
  annotations?: Record<string, string>;
}

const LAYER_BYTES = [6 * 1024 * 1024, 300 * 1024, 20];

/**
 * Makes, in a layout under `folder`, an image for linux/amd64 and an index of one for amd64 and one for arm64. Their layers are
 * gzipped tar archives of files that do not compress, and no two images share one.
 */
export async function makeSamples(folder: string): Promise<{ single: Sample; multi: Sample }> {
  const layout = join(folder, "layout");
  await run("umoci", ["init", "--layout", layout]);
  const single = await makeImage(folder, layout, "single", "amd64");
  const amd64 = await makeImage(folder, layout, "amd64", "amd64");
  const arm64 = await makeImage(folder, layout, "arm64", "arm64");
  const index = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociIndex,
      manifests: [amd64, arm64].map(({ mediaType, digest, size }, at) => ({
        mediaType,
        digest,
        size,
        platform: { os: "linux", architecture: at === 0 ? "amd64" : "arm64" },
      })),
    }),
  );
  const digest = digestOf(index);
  await writeFile(blobPath(layout, digest), index);
  const tags = await readIndex(layout);
  tags.manifests.push({
    mediaType: MEDIA_TYPES.ociIndex,
    digest,
    size: index.length,
    annotations: { "org.opencontainers.image.ref.name": "multi" },
  });
  await writeFile(join(layout, "index.json"), JSON.stringify(tags));
  const singleBytes = await closureBytes(layout, single.digest);
  const multiBytes = index.length + (await closureBytes(layout, amd64.digest));
  return {
    single: {
      source: `oci:${layout}:single`,
      digest: single.digest,
      sizeBytes: singleBytes,
      totalBytes: singleBytes,
    },
    multi: {
      source: `oci:${layout}:multi`,
      digest,
      sizeBytes: multiBytes,
      totalBytes: multiBytes + (await closureBytes(layout, arm64.digest)),
    },
  };
}

async function makeImage(folder: string, layout: string, tag: string, architecture: string): Promise<Descriptor> {
  const image = `${layout}:${tag}`;
  await run("umoci", ["new", "--image", image]);
  await run("umoci", ["config", "--image", image, "--os", "linux", "--architecture", architecture]);
  for (const [number, bytes] of LAYER_BYTES.entries()) {
    const files = join(folder, `${tag}-${number}`);
    await mkdir(files);
    await writeFile(join(files, "file"), randomBytes(bytes));
    await run("umoci", ["insert", "--image", image, files, `/layer-${number}`]);
  }
  const { manifests } = await readIndex(layout);
  const found = manifests.find(({ annotations }) => annotations?.["org.opencontainers.image.ref.name"] === tag);
  assert.ok(found, `umoci tagged nothing as ${tag}`);
  return found;
}

async function readIndex(layout: string): Promise<{ manifests: Descriptor[] }> {
  return JSON.parse(await readFile(join(layout, "index.json"), "utf8")) as { manifests: Descriptor[] };
}

async function closureBytes(layout: string, digest: Digest): Promise<number> {
  const bytes = await readFile(blobPath(layout, digest));
  const { config, layers } = JSON.parse(bytes.toString()) as { config: Descriptor; layers: Descriptor[] };
  let total = bytes.length;
  for (const blob of [config, ...layers]) total += (await stat(blobPath(layout, blob.digest))).size;
  return total;
}

function blobPath(layout: string, digest: Digest): string {
  return join(layout, "blobs", ...digest.split(":"));
}
