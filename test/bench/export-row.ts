/** Writing a large image into a file, beside copying its blobs by cp. */
import { rm, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { request } from "undici";
import { makeImage, virtualBlob, type Content, type Image } from "../kit/images.ts";
import { alternate, median, noisyVerdict, times, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const MAIN = new URL("../../src/main.ts", import.meta.url).pathname;
/** The image, what is copied of it, and room to breathe. */
const COPIES = 2.5;
const LEAST = 0.8;

export async function exportRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, quick, progress } = bench;
  const folder = await lab.newFolder("export");
  const { bavail, bsize } = await statfs(folder);
  const wanted = quick ? 1 : 10;
  const gibs = Math.max(1, Math.min(wanted, Math.floor((bavail * bsize) / COPIES / GIB)));
  if (gibs < wanted) progress(`the disk has room for ${gibs} GiB only`);
  const root = join(folder, "data");
  await using server = await lab.startEntrepot(upstream.port, root);
  const image = makeImage({ layers: Array.from({ length: gibs }, (_, i) => virtualBlob(GIB, `export ${i}`)) });
  progress(`pushing ${gibs} GiB`);
  await push(`http://127.0.0.1:${server.port}/v2/bench/export`, image);
  const config = join(folder, "entrepot.json");
  await writeFile(config, JSON.stringify({ server: { listen: `127.0.0.1:${server.port}` }, storage: { root } }));
  const archive = join(folder, "image.tar");
  const copies = join(folder, "copies");
  const blobs = join(root, "blobs");
  progress("exporting and copying");
  /** Neither finds unwritten pages of the other, and both write into free space. */
  const timed = async (made: string, work: () => Promise<unknown>): Promise<number> => {
    await lab.run("sync", []);
    const startedAtMs = performance.now();
    await work();
    const seconds = (performance.now() - startedAtMs) / 1000;
    await rm(made, { recursive: true });
    return seconds;
  };
  const samples = await alternate(quick ? 3 : 5, {
    export: () =>
      timed(archive, () => lab.run(process.execPath, [MAIN, "export", "bench/export:1", archive, "--config", config])),
    // As the export does: what is told as done is on the disk.
    copy: () =>
      timed(copies, () => lab.run("sh", ["-c", 'cp -r "$0" "$1" && find "$1" -type f -exec sync {} +', blobs, copies])),
  });
  const mibPerSecond = (seconds: readonly number[]): number => (gibs * 1024) / median(seconds);
  const ratio = mibPerSecond(samples.export) / mibPerSecond(samples.copy);
  return [
    {
      work: `export of an image of ${gibs} GiB into a file, proven, against cp and sync of its blobs`,
      entrepot: `${Math.round(mibPerSecond(samples.export))} MiB/s, cp ${Math.round(mibPerSecond(samples.copy))} MiB/s`,
      peer: "–",
      result: times(ratio),
      target: `≥ ${LEAST} ×`,
      verdict: noisyVerdict(bench, ratio >= LEAST),
      samples,
    },
  ];
}

async function push(repository: string, image: Image): Promise<void> {
  const put = async (url: string, headers: Record<string, string>, body: Buffer | Readable): Promise<void> => {
    const answer = await request(url, { method: url.includes("/manifests/") ? "PUT" : "POST", headers, body });
    await answer.body.dump();
    if (answer.statusCode !== 201) throw new Error(`${url} answered ${answer.statusCode}`);
  };
  const bodyOf = (blob: Content): Readable => Readable.from(blob.chunks(0, blob.sizeBytes));
  for (const blob of [image.config, ...image.layers]) {
    const headers = { "content-length": String(blob.sizeBytes) };
    await put(`${repository}/blobs/uploads/?digest=${blob.digest}`, headers, bodyOf(blob));
  }
  await put(`${repository}/manifests/1`, { "content-type": image.mediaType }, image.manifest);
}
