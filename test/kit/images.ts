import { createCipheriv, createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { digestOf, type Digest, type DigestAlgorithm } from "../../src/oci/digest.ts";
import { MEDIA_TYPES, type Platform } from "../../src/oci/manifest.ts";

/** Bytes that may be too many for memory. */
export interface Content {
  readonly sizeBytes: number;
  readonly digest: Digest;
  /** All of them at once: not for a blob of a GiB. */
  readonly bytes: Buffer;
  /** Bytes [firstByte, endByte) in pieces of at most 1 MiB: views, never to be written to. */
  chunks(firstByte: number, endByte: number): Iterable<Buffer>;
}

export interface ImageBlob extends Content {
  readonly mediaType: string;
}

/** What a tag or a digest may name. */
export interface Published {
  readonly manifest: Buffer;
  readonly mediaType: string;
  readonly digest: Digest;
}

export interface Image extends Published {
  readonly config: ImageBlob;
  readonly layers: ImageBlob[];
  /** The config and the layers by digest. */
  readonly blobs: Map<Digest, Content>;
}

export interface Index extends Published {
  readonly images: Image[];
}

export interface ImageOptions {
  /** A number is the size in bytes of a layer to generate. */
  layers: (number | Buffer | Content)[];
  /** linux/amd64 without it. */
  platform?: Platform;
  /** Images of equal options have equal bytes; another seed gives other generated layers and another config. */
  seed?: string | number;
  /** "oci" without it. */
  mediaTypes?: "oci" | "docker";
  annotations?: Record<string, string>;
  /** Whether generated layers are gzipped tar archives of that many bytes, which a container engine can unpack, not just random bytes. */
  real?: boolean;
  /** Names every blob and the manifest itself; sha256 without it. */
  algorithm?: DigestAlgorithm;
}

const CHUNK_BYTES = 1024 * 1024;
const STAMP_BYTES = 4;

const BLOB_TYPES = {
  oci: { config: "application/vnd.oci.image.config.v1+json", layer: "application/vnd.oci.image.layer.v1.tar+gzip" },
  docker: {
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
  },
} as const;

export function makeImage(options: ImageOptions): Image {
  const {
    mediaTypes = "oci",
    seed = 0,
    algorithm = "sha256",
    platform = { os: "linux", architecture: "amd64" },
  } = options;
  const types = BLOB_TYPES[mediaTypes];
  const diffIds: Digest[] = [];
  const layers = options.layers.map((layer, index) => {
    let content: Content;
    if (typeof layer !== "number") content = Buffer.isBuffer(layer) ? contentOf(layer, algorithm) : layer;
    else if (options.real === true) {
      const tar = tarOf(`layer-${index}.bin`, randomBytes(layer, `${seed}/${index}`));
      diffIds.push(digestOf(tar));
      return blobOf(contentOf(gzipSync(tar, { level: 1 }), algorithm), types.layer);
    } else content = virtualBlob(layer, `${seed}/${index}`, algorithm);
    diffIds.push(content.digest);
    return blobOf(content, types.layer);
  });
  const config = blobOf(
    contentOf(
      json({
        ...platform,
        created: "1970-01-01T00:00:00Z",
        config: { Labels: { seed: String(seed) } },
        rootfs: { type: "layers", diff_ids: diffIds },
      }),
      algorithm,
    ),
    types.config,
  );
  const mediaType = mediaTypes === "oci" ? MEDIA_TYPES.ociImage : MEDIA_TYPES.dockerImage;
  return imageOf(config, layers, algorithm, {
    mediaType,
    ...(options.annotations ? { annotations: options.annotations } : {}),
  });
}

/** A multi-platform image: an OCI index or a Docker manifest list. */
export function makeIndex(images: [Platform, Image][], kind: "oci" | "docker" = "oci"): Index {
  const mediaType = kind === "oci" ? MEDIA_TYPES.ociIndex : MEDIA_TYPES.dockerList;
  const manifest = json({
    schemaVersion: 2,
    mediaType,
    manifests: images.map(([platform, image]) => ({ ...descriptorOf(image), platform })),
  });
  return { manifest, mediaType, digest: digestOf(manifest), images: images.map(([, image]) => image) };
}

/** A signature, SBOM or the like that refers to a subject. Source: OCI image-spec, "Guidelines for Artifact Usage" */
export function makeArtifact(options: { subject: Published; artifactType: string; payload: Buffer | string }): Image {
  const config = blobOf(contentOf(Buffer.from("{}")), "application/vnd.oci.empty.v1+json");
  const payload = blobOf(contentOf(Buffer.from(options.payload)), options.artifactType);
  return imageOf(config, [payload], "sha256", {
    mediaType: MEDIA_TYPES.ociImage,
    artifactType: options.artifactType,
    subject: descriptorOf(options.subject),
  });
}

export function contentOf(bytes: Buffer, algorithm: DigestAlgorithm = "sha256"): Content {
  return {
    sizeBytes: bytes.byteLength,
    digest: digestOf(bytes, algorithm),
    bytes,
    *chunks(firstByte, endByte) {
      for (let at = firstByte; at < endByte; at += CHUNK_BYTES)
        yield bytes.subarray(at, Math.min(at + CHUNK_BYTES, endByte));
    },
  };
}

const knownDigests = new Map<string, Digest>();

/**
 * A blob of any size that takes 1 MiB of memory: a random block, repeated, each time marked with its number, so that
 * a block out of place is wrong bytes.
 */
export function virtualBlob(sizeBytes: number, seed: string | number, algorithm: DigestAlgorithm = "sha256"): Content {
  const block = randomBytes(Math.min(sizeBytes, CHUNK_BYTES), seed);
  function* chunks(firstByte: number, endByte: number): Generator<Buffer> {
    for (let at = firstByte; at < endByte;) {
      const offset = at % CHUNK_BYTES;
      const start = at - offset;
      const piece = start > 0 && offset < STAMP_BYTES ? stamp(block, start / CHUNK_BYTES) : block;
      const end = Math.min(start + piece.byteLength, endByte);
      yield piece.subarray(offset, end - start);
      at = end;
    }
  }
  return {
    sizeBytes,
    get digest() {
      const key = `${algorithm}/${sizeBytes}/${seed}`;
      let digest = knownDigests.get(key);
      if (digest === undefined) {
        const hash = createHash(algorithm);
        for (const chunk of chunks(0, sizeBytes)) hash.update(chunk);
        digest = `${algorithm}:${hash.digest("hex")}` as Digest;
        knownDigests.set(key, digest);
      }
      return digest;
    },
    get bytes() {
      return Buffer.concat([...chunks(0, sizeBytes)]);
    },
    chunks,
  };
}

function stamp(block: Buffer, blockNumber: number): Buffer {
  const bytes = Buffer.alloc(STAMP_BYTES);
  bytes.writeInt32BE(block.readInt32BE(0) ^ blockNumber);
  return bytes;
}

/** Bytes that do not compress, the same ones for the same seed: the key stream of a cipher. */
function randomBytes(sizeBytes: number, seed: string | number): Buffer {
  const key = createHash("sha256").update(String(seed)).digest().subarray(0, 16);
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(sizeBytes));
}

function blobOf(content: Content, mediaType: string): ImageBlob {
  return {
    mediaType,
    sizeBytes: content.sizeBytes,
    digest: content.digest,
    get bytes() {
      return content.bytes;
    },
    chunks: (firstByte, endByte) => content.chunks(firstByte, endByte),
  };
}

function imageOf(
  config: ImageBlob,
  layers: ImageBlob[],
  algorithm: DigestAlgorithm,
  fields: { mediaType: string } & Record<string, unknown>,
): Image {
  const manifest = json({
    schemaVersion: 2,
    ...fields,
    config: descriptorOf(config),
    layers: layers.map(descriptorOf),
  });
  return {
    manifest,
    mediaType: fields.mediaType,
    digest: digestOf(manifest, algorithm),
    config,
    layers,
    blobs: new Map([config, ...layers].map((blob) => [blob.digest, blob])),
  };
}

function descriptorOf(item: ImageBlob | Published): { mediaType: string; digest: Digest; size: number } {
  const size = "manifest" in item ? item.manifest.byteLength : item.sizeBytes;
  return { mediaType: item.mediaType, digest: item.digest, size };
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** A tar archive of one file. Source: POSIX.1-1988, "ustar" */
function tarOf(name: string, bytes: Buffer): Buffer {
  const header = Buffer.alloc(512);
  header.write(name, 0);
  header.write("0000644\0", 100);
  header.write("0000000\0", 108);
  header.write("0000000\0", 116);
  header.write(`${bytes.byteLength.toString(8).padStart(11, "0")}\0`, 124);
  header.write("00000000000\0", 136);
  header.write("        ", 148); // the checksum counts its own field as blanks
  header.write("0", 156);
  header.write("ustar\x0000", 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  const padding = Buffer.alloc((512 - (bytes.byteLength % 512)) % 512);
  return Buffer.concat([header, bytes, padding, Buffer.alloc(1024)]);
}
