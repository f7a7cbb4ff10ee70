import { request } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { makeImage, type Content, type Image } from "../kit/images.ts";
import type { Server } from "./lab.ts";

export const MIB = 1024 * 1024;
export const GIB = 1024 * MIB;

/** An image whose config has exactly that size, of generated layers. */
export function imageOf(layers: number[], seed: string, configBytes: number): Image {
  const bare = makeImage({ layers, seed }).config.sizeBytes;
  if (bare > configBytes) throw new Error(`the config of ${layers.length} layers takes ${bare} bytes`);
  return makeImage({ layers, seed: seed.padEnd(seed.length + configBytes - bare, ".") });
}

/** Pushes an image to a registry, as any client would. */
export async function push(registry: Server, repository: string, tag: string, image: Image): Promise<void> {
  for (const blob of image.blobs.values()) await pushBlob(registry, repository, blob);
  const { manifest, mediaType } = image;
  const path = `/v2/${repository}/manifests/${tag}`;
  await send(registry, "PUT", path, { "content-type": mediaType, "content-length": manifest.length }, [manifest]);
}

async function pushBlob(registry: Server, repository: string, blob: Content): Promise<void> {
  const location = await send(registry, "POST", `/v2/${repository}/blobs/uploads/`, { "content-length": 0 }, []);
  const target = new URL(location, `http://127.0.0.1:${registry.port}`);
  target.searchParams.set("digest", blob.digest);
  const headers = { "content-type": "application/octet-stream", "content-length": blob.sizeBytes };
  await send(registry, "PUT", target.pathname + target.search, headers, blob.chunks(0, blob.sizeBytes));
}

async function send(
  { port }: Server,
  method: string,
  path: string,
  headers: Record<string, string | number>,
  body: Iterable<Buffer>,
): Promise<string> {
  const sent = request({ host: "127.0.0.1", port, method, path, headers });
  const answered = new Promise<string>((resolve, reject) => {
    sent.once("error", reject);
    sent.once("response", (response) => {
      response.resume();
      const ok = response.statusCode === 201 || response.statusCode === 202;
      if (ok) resolve(response.headers.location ?? "");
      else reject(new Error(`${method} ${path}: status ${response.statusCode}`));
    });
  });
  const [location] = await Promise.all([answered, pipeline(Readable.from(body), sent)]);
  return location;
}
