import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { digestOf } from "../../src/oci/digest.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import {
  bareMediaType,
  isManifestType,
  MAX_MANIFEST_BYTES,
  MEDIA_TYPES,
  parseManifest,
} from "../../src/oci/manifest.ts";
import { makeArtifact, makeImage, makeIndex } from "../kit/images.ts";

const digest = digestOf(Buffer.from("x"));
const descriptor = { mediaType: "application/x", digest, size: 1 };

function bytesOf(value: unknown): Buffer {
  return Buffer.from(typeof value === "string" ? value : JSON.stringify(value));
}

function refusal(value: unknown, contentType: string | undefined): RegistryError {
  try {
    parseManifest(bytesOf(value), contentType);
  } catch (error) {
    if (error instanceof RegistryError) return error;
    throw error;
  }
  return assert.fail("the manifest was accepted");
}

for (const mediaTypes of ["oci", "docker"] as const) {
  test(`an image and an index of ${mediaTypes} are read`, () => {
    const image = makeImage({ layers: [3, 4], mediaTypes });
    const read = parseManifest(image.manifest, image.mediaType);
    assert.equal(read.kind, "image");
    assert.equal(read.mediaType, image.mediaType);
    assert.equal(read.config?.digest, image.config.digest);
    assert.equal(read.artifactType, image.config.mediaType);
    assert.deepEqual(
      read.layers.map(({ digest, sizeBytes, foreign }) => [digest, sizeBytes, foreign]),
      image.layers.map(({ digest, sizeBytes }) => [digest, sizeBytes, false]),
    );
    const platform = { os: "linux", architecture: "arm", variant: "v7" };
    const index = makeIndex([[platform, image]], mediaTypes);
    const list = parseManifest(index.manifest, index.mediaType);
    assert.equal(list.kind, "index");
    assert.deepEqual(list.manifests, [
      {
        mediaType: image.mediaType,
        digest: image.digest,
        sizeBytes: image.manifest.byteLength,
        platform,
        foreign: false,
      },
    ]);
    assert.deepEqual([list.config, list.layers, list.artifactType], [undefined, [], undefined]);
  });
}

test("an artifact names its subject and its type", () => {
  const image = makeImage({ layers: [3] });
  const artifact = makeArtifact({ subject: image, artifactType: "application/x-sbom", payload: "{}" });
  const read = parseManifest(artifact.manifest, artifact.mediaType);
  assert.equal(read.subject?.digest, image.digest);
  assert.equal(read.artifactType, "application/x-sbom");
  const noSubject = parseManifest(
    bytesOf({ schemaVersion: 2, config: descriptor, layers: [], subject: null }),
    undefined,
  );
  assert.equal(noSubject.subject, undefined);
  assert.equal(noSubject.artifactType, "application/x");
});

test("the blobs of an old artifact manifest count as layers", () => {
  const mediaType = "application/vnd.oci.artifact.manifest.v1+json";
  const read = parseManifest(bytesOf({ schemaVersion: 2, mediaType, blobs: [descriptor] }), mediaType);
  assert.equal(read.kind, "image");
  assert.equal(read.layers[0]?.digest, digest);
});

test("the type comes from the body, else from the header, else from the content", () => {
  const image = { schemaVersion: 2, config: descriptor, layers: [] };
  assert.equal(parseManifest(bytesOf(image), undefined).mediaType, MEDIA_TYPES.ociImage);
  assert.equal(
    parseManifest(bytesOf({ schemaVersion: 2, manifests: [] }), "text/plain").mediaType,
    MEDIA_TYPES.ociIndex,
  );
  assert.equal(parseManifest(bytesOf(image), MEDIA_TYPES.dockerImage).mediaType, MEDIA_TYPES.dockerImage);
  const own = { ...image, mediaType: MEDIA_TYPES.dockerImage };
  for (const sent of [
    "application/json",
    "text/plain; charset=utf-8",
    undefined,
    `${MEDIA_TYPES.dockerImage}; charset=utf-8`,
  ]) {
    assert.equal(parseManifest(bytesOf(own), sent).mediaType, MEDIA_TYPES.dockerImage);
  }
});

test("a manifest that could be read as two things is refused", () => {
  const image = { schemaVersion: 2, config: descriptor, layers: [descriptor] };
  const index = { schemaVersion: 2, manifests: [descriptor] };
  const confused: [object, string | undefined][] = [
    [{ ...image, ...index }, MEDIA_TYPES.ociImage],
    [{ ...image, ...index }, undefined],
    [{ ...index, layers: [] }, MEDIA_TYPES.ociIndex],
    [{ ...index, config: descriptor }, MEDIA_TYPES.ociIndex],
    [{ ...index, blobs: [] }, undefined],
    [image, MEDIA_TYPES.ociIndex],
    [image, MEDIA_TYPES.dockerList],
    [index, MEDIA_TYPES.ociImage],
    [index, MEDIA_TYPES.dockerImage],
    [{ ...image, mediaType: MEDIA_TYPES.ociIndex }, undefined],
    [{ ...index, mediaType: MEDIA_TYPES.ociImage }, undefined],
    [{ ...image, mediaType: MEDIA_TYPES.ociImage }, MEDIA_TYPES.dockerImage],
    [{ ...index, mediaType: MEDIA_TYPES.ociIndex }, MEDIA_TYPES.dockerList],
    [{ ...image, mediaType: 7 }, undefined],
    [{ schemaVersion: 2 }, MEDIA_TYPES.ociIndex],
  ];
  for (const [body, contentType] of confused) {
    const error = refusal(body, contentType);
    assert.deepEqual([error.code, error.status], ["MANIFEST_INVALID", 400], JSON.stringify(body));
  }
});

test("what is no manifest is refused with the reason", () => {
  const refused: [unknown, RegExp][] = [
    ["", /not JSON/],
    ["{", /not JSON/],
    ["[]", /not a JSON object/],
    ["null", /not a JSON object/],
    [{}, /schemaVersion is not 2/],
    [{ schemaVersion: 1 }, /schema 1 manifests are not supported: push or pull/],
    [{ schemaVersion: "2" }, /schemaVersion is not 2/],
    [{ schemaVersion: 2, layers: {} }, /layers is not a list/],
    [{ schemaVersion: 2, layers: [1] }, /layers\[0\] is not a descriptor/],
    [{ schemaVersion: 2, layers: [descriptor, { ...descriptor, digest: "sha256:../x" }] }, /layers\[1\]\.digest/],
    [{ schemaVersion: 2, config: { ...descriptor, digest: undefined } }, /config\.digest/],
    [{ schemaVersion: 2, config: [] }, /config is not a descriptor/],
    [{ schemaVersion: 2, subject: "x" }, /subject is not a descriptor/],
    [{ schemaVersion: 2, artifactType: 1 }, /artifactType is not a string/],
    [{ schemaVersion: 2, layers: [{ ...descriptor, mediaType: 1 }] }, /layers\[0\]\.mediaType/],
  ];
  for (const size of [-1, 1.5, 2 ** 53, "1", null, undefined]) {
    refused.push([{ schemaVersion: 2, layers: [{ ...descriptor, size }] }, /layers\[0\]\.size/]);
  }
  for (const [body, message] of refused) assert.match(refusal(body, undefined).message, message);
  assert.throws(() => parseManifest(Buffer.of(0x7b, 0xff, 0x7d), undefined), { code: "MANIFEST_INVALID" });
});

test("foreign layers are marked", () => {
  const layers = [
    { ...descriptor, urls: ["http://169.254.169.254/"] },
    { ...descriptor, urls: [] },
    { ...descriptor, mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" },
    { ...descriptor, mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar" },
  ];
  const read = parseManifest(bytesOf({ schemaVersion: 2, config: descriptor, layers }), undefined);
  assert.deepEqual(
    read.layers.map(({ foreign }) => foreign),
    [true, false, true, true],
  );
});

test("what only informs is left out where it cannot be read, and refuses nothing", () => {
  const entry = { ...descriptor, platform: { os: "linux" }, annotations: { a: "b", c: 1 } };
  const read = parseManifest(bytesOf({ schemaVersion: 2, manifests: [entry], annotations: [] }), undefined);
  assert.deepEqual(read.manifests[0], {
    mediaType: "application/x",
    digest,
    sizeBytes: 1,
    annotations: { a: "b" },
    foreign: false,
  });
  assert.equal(read.annotations, undefined);
});

test("4 MiB are accepted, a byte more is 413", () => {
  const body = bytesOf({ schemaVersion: 2, config: descriptor, layers: [] });
  const padded = (bytes: number): Buffer => Buffer.concat([body, Buffer.alloc(bytes - body.byteLength, " ")]);
  assert.equal(parseManifest(padded(MAX_MANIFEST_BYTES), undefined).kind, "image");
  assert.throws(() => parseManifest(padded(MAX_MANIFEST_BYTES + 1), undefined), {
    code: "MANIFEST_INVALID",
    status: 413,
  });
});

test("too many layers and deep nesting are refused at once", () => {
  const started = performance.now();
  const many = refusal({ schemaVersion: 2, layers: Array.from({ length: 40_000 }, () => 1) }, undefined);
  assert.match(many.message, /40000 entries, more than 10000/);
  const nested = "[".repeat(1_000_000) + "]".repeat(1_000_000);
  assert.match(refusal(nested, undefined).message, /not a JSON object/);
  assert.match(refusal(`{"schemaVersion":2,"layers":${nested}}`, undefined).message, /layers\[0\] is not a descriptor/);
  assert.match(refusal(`{"schemaVersion":2,"config":{"a":${nested}}}`, undefined).message, /config\.digest/);
  assert.ok(performance.now() - started < 2000);
});

test("any JSON is a manifest or is refused as none", () => {
  const keys = fc.constantFrom(
    "config",
    "layers",
    "manifests",
    "blobs",
    "subject",
    "mediaType",
    "artifactType",
    "annotations",
    "__proto__",
  );
  const parts = fc.oneof(
    fc.jsonValue(),
    fc.constantFrom(...Object.values(MEDIA_TYPES)),
    fc.array(
      fc.record(
        { digest: fc.constant(digest), size: fc.nat(), platform: fc.jsonValue(), urls: fc.jsonValue() },
        { requiredKeys: [] },
      ),
    ),
  );
  const types = fc.option(fc.oneof(fc.string(), fc.constantFrom(...Object.values(MEDIA_TYPES))), { nil: undefined });
  fc.assert(
    fc.property(fc.dictionary(keys, parts), types, (body, contentType) => {
      try {
        const read = parseManifest(bytesOf({ ...body, schemaVersion: 2 }), contentType);
        assert.ok(read.kind === "index" ? read.layers.length === 0 && !read.config : read.manifests.length === 0);
      } catch (error) {
        assert.ok(error instanceof RegistryError && error.code === "MANIFEST_INVALID", String(error));
      }
    }),
    { numRuns: 500 },
  );
  fc.assert(
    fc.property(fc.uint8Array(), (bytes) => {
      assert.throws(() => parseManifest(bytes, undefined), { code: "MANIFEST_INVALID" });
    }),
  );
});

test("a media type is compared without parameters and case", () => {
  assert.equal(bareMediaType("Application/JSON; charset=utf-8"), "application/json");
  assert.equal(bareMediaType(" ; x"), undefined);
  assert.equal(bareMediaType(undefined), undefined);
  assert.ok(Object.values(MEDIA_TYPES).every(isManifestType));
  assert.ok(!isManifestType("application/json"));
});

test("a key that differs from a meaningful one by case alone is refused: other decoders would read it", () => {
  const body = { schemaVersion: 2, config: { digest: `sha256:${"a".repeat(64)}`, size: 1 }, layers: [], Manifests: [] };
  assert.throws(
    () => parseManifest(Buffer.from(JSON.stringify(body)), undefined),
    /has a key Manifests, spelt otherwise/,
  );
});

test("a media type that a browser would run is no manifest's", () => {
  for (const mediaType of ["text/html", "application/x\ny", "image/svg+xml"]) {
    const body = { schemaVersion: 2, mediaType, config: { digest: `sha256:${"a".repeat(64)}`, size: 1 }, layers: [] };
    assert.throws(
      () => parseManifest(Buffer.from(JSON.stringify(body)), "application/json"),
      /mediaType is not that of a manifest/,
    );
  }
});
