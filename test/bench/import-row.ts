/** Taking over the data directory of a registry:2 on the same file system. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { digestOf, hexOf, type Digest } from "../../src/oci/digest.ts";
import { verdict, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const LAYERS = 9;
const IMAGES_PER_REPOSITORY = 50;
const BLOB_BYTES = 4096;
const LEAST_PER_SECOND = 5000;

interface Done {
  type: string;
  blobs: number;
  manifests: number;
  leftOut: number;
  ms: number;
}

export async function importRow({ lab, upstream, quick, progress }: Bench): Promise<Line[]> {
  const images = quick ? 500 : 5000;
  const source = await lab.newFolder("registry-data");
  progress(`writing ${whole(images)} images of ${LAYERS + 1} blobs`);
  writeRegistry(source, images);
  await using server = await lab.startEntrepot(upstream.port);
  progress("taking over");
  const answer = await fetch(`http://127.0.0.1:${server.port}/api/v1/import`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ path: source, deferVerification: true }),
  });
  const told = (await answer.text()).trimEnd().split("\n");
  const { type, blobs, manifests, leftOut, ms } = JSON.parse(told.at(-1) ?? "{}") as Done;
  if (type !== "done" || leftOut > 0) throw new Error(`the import failed: ${told.slice(-3).join("\n")}`);
  const perSecond = (blobs * 1000) / ms;
  return [
    {
      work: `import of a registry:2 directory with ${whole(blobs)} blobs in ${whole(manifests)} images, by hard link, verification deferred`,
      entrepot: `${whole(perSecond)} blobs/s`,
      peer: "–",
      result: `${(ms / 1000).toFixed(1)} s`,
      target: `≥ ${whole(LEAST_PER_SECOND)} blobs/s`,
      verdict: quick ? "not judged" : verdict(perSecond >= LEAST_PER_SECOND),
      samples: { ms: [ms] },
    },
  ];
}

/** What registry:2 would have written: no two images share a blob. */
function writeRegistry(folder: string, images: number): void {
  const root = join(folder, "docker/registry/v2");
  const write = (path: string, bytes: string | Buffer): void => {
    const file = join(root, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, bytes);
  };
  const content = (bytes: Buffer): Digest => {
    const digest = digestOf(bytes);
    write(`blobs/sha256/${hexOf(digest).slice(0, 2)}/${hexOf(digest)}/data`, bytes);
    return digest;
  };
  for (let image = 0; image < images; image++) {
    const repository = `repositories/team/app-${Math.floor(image / IMAGES_PER_REPOSITORY)}`;
    const [config, ...layers] = Array.from({ length: LAYERS + 1 }, (_, index) => {
      const bytes = Buffer.alloc(BLOB_BYTES, `${image}/${index} `);
      const digest = content(bytes);
      write(`${repository}/_layers/sha256/${hexOf(digest)}/link`, digest);
      return { digest, size: bytes.length };
    });
    const manifest = content(
      Buffer.from(
        JSON.stringify({
          schemaVersion: 2,
          mediaType: "application/vnd.oci.image.manifest.v1+json",
          config: { mediaType: "application/vnd.oci.image.config.v1+json", ...config },
          layers: layers.map((layer) => ({ mediaType: "application/vnd.oci.image.layer.v1.tar", ...layer })),
        }),
      ),
    );
    write(`${repository}/_manifests/revisions/sha256/${hexOf(manifest)}/link`, manifest);
    write(`${repository}/_manifests/tags/v${image}/current/link`, manifest);
  }
}
