import assert from "node:assert/strict";
import { makeImage, type Image, type ImageBlob } from "../kit/images.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream, type UpstreamOptions } from "../kit/upstream.ts";
import { Client } from "./client.ts";

export const MIB = 1024 * 1024;
export const REPOSITORY = "library/app";

export interface Stage extends AsyncDisposable {
  upstream: Upstream;
  mirror: TestRegistry;
  image: Image;
  layer: ImageBlob;
  readonly pull: (headers?: Record<string, string>) => Client;
}

/** An upstream with an image of one layer, and a mirror before it. */
export async function startStage(
  layerBytes: number,
  {
    upstream: ofUpstream = {},
    config = {},
    ...options
  }: RegistryOptions & {
    upstream?: UpstreamOptions;
    config?: RegistryOptions["config"] & { upstream?: Record<string, unknown> };
  } = {},
): Promise<Stage> {
  const { upstream: upstreamConfig, ...rest } = config;
  const image = makeImage({ layers: [layerBytes], seed: layerBytes });
  const [layer] = image.layers;
  assert.ok(layer);
  const upstream = await startUpstream(ofUpstream);
  upstream.add(REPOSITORY, "1", image);
  const mirror = await startRegistry({
    upstreams: { "docker.io": { ...upstreamConfig, url: upstream.url } },
    config: rest,
    ...options,
  });
  return {
    upstream,
    mirror,
    image,
    layer,
    pull: (headers) => new Client(`${mirror.url}/v2/${REPOSITORY}/blobs/${layer.digest}`, headers),
    [Symbol.asyncDispose]: async () => {
      await mirror[Symbol.asyncDispose]();
      await upstream[Symbol.asyncDispose]();
    },
  };
}

/** Resolves when the blob is in place. */
export const stored = ({ mirror }: Stage): Promise<void> =>
  mirror.until(async () => (await mirror.blobFiles()).length === 1, "the blob is stored");
