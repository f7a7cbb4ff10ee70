import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { digestOf } from "../../src/oci/digest.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import { parseRoute } from "../../src/oci/route.ts";

const digest = digestOf(Buffer.from("x"));
// Words of the paths themselves are names as good as any.
const components = fc.oneof(
  fc.constantFrom("blobs", "uploads", "manifests", "tags", "list", "referrers", "v2", "a", "ghcr.io"),
  fc.stringMatching(/^[a-z0-9]{1,5}([._-][a-z0-9]{1,5})?$/),
);
const names = fc.array(components, { minLength: 1, maxLength: 5 }).map((parts) => parts.join("/"));

function codeOf(path: string): string | undefined {
  try {
    parseRoute(path);
  } catch (error) {
    if (error instanceof RegistryError) return error.code;
    throw error;
  }
  return undefined;
}

test("each endpoint of the specification is read, whatever words the name holds", () => {
  fc.assert(
    fc.property(names, fc.boolean(), (name, escaped) => {
      const base = `/v2/${escaped ? encodeURIComponent(name) : name}`;
      assert.deepEqual(parseRoute(`${base}/manifests/latest`), { kind: "manifest", name, reference: "latest" });
      assert.deepEqual(parseRoute(`${base}/manifests/${digest}`), { kind: "manifest", name, reference: digest });
      assert.deepEqual(parseRoute(`${base}/blobs/${digest}`), { kind: "blob", name, digest });
      assert.deepEqual(parseRoute(`${base}/blobs/uploads/`), { kind: "uploads", name });
      assert.deepEqual(parseRoute(`${base}/blobs/uploads`), { kind: "uploads", name });
      assert.deepEqual(parseRoute(`${base}/blobs/uploads/0aB_-9`), { kind: "upload", name, id: "0aB_-9" });
      assert.deepEqual(parseRoute(`${base}/tags/list`), { kind: "tags", name });
      assert.deepEqual(parseRoute(`${base}/referrers/${digest}`), { kind: "referrers", name, digest });
    }),
  );
  assert.deepEqual(parseRoute("/v2/"), { kind: "base" });
  assert.deepEqual(parseRoute("/v2"), { kind: "base" });
  assert.deepEqual(parseRoute("/v2/_catalog"), { kind: "catalog" });
});

test("an escaped digest is a digest", () => {
  assert.deepEqual(parseRoute(`/v2/a/blobs/${encodeURIComponent(digest)}`), { kind: "blob", name: "a", digest });
});

test("other paths are no endpoints", () => {
  for (const path of [
    "/",
    "",
    "/v1/",
    "/v2x",
    "/v2/a",
    "/v2/a/b",
    "/v2/a/tags",
    "/v2/a/tags/all",
    "v2/",
    "/V2/",
    "/v2/_catalog/",
  ]) {
    assert.equal(parseRoute(path), undefined, path);
  }
});

test("hostile paths are refused with the code of the part that is wrong", () => {
  const refused: [string, string][] = [
    ["/v2/manifests/latest", "NAME_INVALID"],
    ["/v2/blobs/uploads/", "NAME_INVALID"],
    ["/v2//manifests/latest", "NAME_INVALID"],
    ["/v2/a//manifests/latest", "NAME_INVALID"],
    ["/v2/../manifests/latest", "NAME_INVALID"],
    ["/v2/a%2f..%2fb/manifests/latest", "NAME_INVALID"],
    ["/v2/%2e%2e/a/manifests/latest", "NAME_INVALID"],
    ["/v2/a%252fb/manifests/latest", "NAME_INVALID"],
    ["/v2/a%00/manifests/latest", "NAME_INVALID"],
    ["/v2/a%/manifests/latest", "NAME_INVALID"],
    ["/v2/a%ff/manifests/latest", "NAME_INVALID"],
    ["/v2/A/manifests/latest", "NAME_INVALID"],
    [`/v2/${"a".repeat(256)}/manifests/latest`, "NAME_INVALID"],
    ["/v2/a/manifests/", "MANIFEST_INVALID"],
    ["/v2/a/manifests/..", "MANIFEST_INVALID"],
    ["/v2/a/manifests/sha256:..", "DIGEST_INVALID"],
    ["/v2/a/blobs/", "DIGEST_INVALID"],
    ["/v2/a/blobs/latest", "DIGEST_INVALID"],
    ["/v2/a/blobs/sha256:..%2fx", "DIGEST_INVALID"],
    ["/v2/a/referrers/latest", "DIGEST_INVALID"],
    ["/v2/a/blobs/uploads/..", "BLOB_UPLOAD_UNKNOWN"],
    [`/v2/a/blobs/uploads/${"a".repeat(129)}`, "BLOB_UPLOAD_UNKNOWN"],
  ];
  for (const [path, code] of refused) {
    // An escaped slash splits before the parts are read: sha256:../x is then no blob's path at all.
    if (path.endsWith("..%2fx")) assert.equal(parseRoute(path), undefined);
    else assert.equal(codeOf(path), code, path);
  }
});

test("any path is an endpoint, no endpoint, or refused with a code", () => {
  const pieces = fc.constantFrom(
    "/",
    "v2",
    "a",
    "blobs",
    "uploads",
    "manifests",
    "tags",
    "list",
    "..",
    "%2f",
    "%",
    "%00",
    digest,
    "_catalog",
  );
  fc.assert(
    fc.property(fc.array(pieces, { maxLength: 12 }), fc.string({ unit: "binary" }), (parts, rest) => {
      codeOf(`/v2/${parts.join("")}`);
      codeOf(`/v2/${parts.join("/")}${rest}`);
    }),
  );
});

test("a megabyte of path is refused at once", () => {
  const started = performance.now();
  for (const piece of ["a", "/", "a/", "-", "%2f", "%61", "%", "blobs/uploads/"]) {
    const path = `/v2/${piece.repeat(1_000_000 / piece.length)}`;
    for (const end of ["", "/manifests/latest", `/blobs/${digest}`, "/tags/list"]) codeOf(path + end);
  }
  assert.ok(performance.now() - started < 2000);
});
