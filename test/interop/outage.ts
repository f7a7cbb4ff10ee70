import assert from "node:assert/strict";
import type { Digest } from "../../src/oci/digest.ts";
import type { Entrepot } from "./entrepot.ts";
import type { Hub } from "./hub.ts";

/** A container engine, or a tool, that pulls the hub's two images by way of Entrepot. */
export interface Client {
  /** @returns the digest that the client says it has, after checking the content itself */
  pull(image: "interop-single" | "interop-multi"): Promise<Digest | string>;
  /** Removes what was pulled, content and all. */
  forget(): Promise<void>;
}

/** Every tag is asked about on every pull, so that the second one finds out that nobody answers. */
export const ALWAYS_ASK = { tagTtl: "0s" };

/**
 * A client pulls two images cold, forgets them, and pulls them again with the upstream gone.
 * @param expectedBytes what has to come from upstream, each byte once
 * @param upstream the name in the metrics
 */
export async function assertSurvivesOutage(
  client: Client,
  { hub, entrepot, upstream, expectedBytes }: { hub: Hub; entrepot: Entrepot; upstream: string; expectedBytes: number },
): Promise<void> {
  const received = (): Promise<number> => entrepot.metric("entrepot_upstream_received_bytes_total", { upstream });
  const served = (): Promise<number> => entrepot.metric("entrepot_cache_served_bytes_total", { upstream });
  const pulls = (kind: string, result: string): Promise<number> =>
    entrepot.metric("entrepot_cache_requests_total", { upstream, kind, result });
  const pullBoth = async (): Promise<void> => {
    assert.equal(await client.pull("interop-single"), hub.single.digest);
    assert.equal(await client.pull("interop-multi"), hub.multi.digest);
  };

  await pullBoth();
  const coldBytes = await received();
  assert.ok(coldBytes >= expectedBytes, `${coldBytes} bytes came from upstream, the images have ${expectedBytes}`);
  assert.ok(coldBytes <= expectedBytes * 1.01, `${coldBytes} bytes came from upstream for ${expectedBytes}`);
  const coldServed = await served();
  assert.ok(coldServed >= expectedBytes, `the client was sent ${coldServed} bytes, the images have ${expectedBytes}`);
  assert.ok((await pulls("manifest", "miss")) >= 2);

  await client.forget();
  await hub.stop();
  const hitsBefore = await pulls("blob", "hit");
  await pullBoth();
  assert.equal(await received(), coldBytes, "upstream is gone, yet bytes came from it");
  const warmServed = (await served()) - coldServed;
  // dockerd may keep manifests of images that it has removed.
  assert.ok(warmServed >= expectedBytes * 0.99, `the second pull was sent ${warmServed} of ${expectedBytes} bytes`);
  assert.ok((await pulls("manifest", "stale")) >= 2, "both tags are served although nobody can be asked");
  assert.ok((await pulls("blob", "hit")) - hitsBefore >= 8, "two configs and six layers come from the cache");
  assert.deepEqual(entrepot.refusals(500), []);
}
