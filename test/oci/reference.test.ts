import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { digestOf } from "../../src/oci/digest.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import {
  isComponent,
  isRepositoryName,
  isTag,
  parseImageReference,
  parseReference,
  parseRepositoryName,
} from "../../src/oci/reference.ts";

// The grammar as the distribution-spec prints it, "Pulling manifests".
const SPEC_NAME = /^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$/;
const SPEC_TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;

const names = fc.stringMatching(SPEC_NAME).filter((name) => name.length <= 255);
const tags = fc.stringMatching(SPEC_TAG);
const digests = fc.uint8Array().chain((bytes) => fc.constantFrom(digestOf(bytes), digestOf(bytes, "sha512")));
const hosts = fc.oneof(
  fc.constant("localhost"),
  fc.stringMatching(/^[a-z0-9]{1,9}(\.[a-z0-9]{1,9}){1,3}$/),
  fc.stringMatching(/^[a-z0-9]{1,9}:[1-9][0-9]{0,4}$/),
);

function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof RegistryError) return error.code;
    throw error;
  }
  return "none";
}

test("a repository's name is what the specification's grammar says", () => {
  fc.assert(fc.property(names, (name) => isRepositoryName(name) && parseRepositoryName(name) === name));
  const near = fc.string({ unit: fc.constantFrom("a", "0", ".", "_", "-", "/", "A", "\n"), maxLength: 10 });
  fc.assert(
    fc.property(near, (text) => isRepositoryName(text) === SPEC_NAME.test(text)),
    { numRuns: 2000 },
  );
});

test("a component is a name without a slash", () => {
  fc.assert(fc.property(names, (name) => isComponent(name) === !name.includes("/")));
  assert.ok(isComponent("ghcr.io"));
  assert.ok(!isComponent(""));
});

test("a name has at most 255 characters", () => {
  assert.ok(isRepositoryName("a".repeat(255)));
  assert.ok(isRepositoryName(`${"a/".repeat(127)}a`));
  assert.ok(!isRepositoryName("a".repeat(256)));
  assert.ok(!isComponent("a".repeat(256)));
});

test("names that lead elsewhere are refused", () => {
  for (const name of [
    "",
    "..",
    "a/..",
    "../a",
    "a//b",
    "/a",
    "a/",
    "a\0b",
    "a b",
    "A",
    "a.",
    "-a",
    "a%2fb",
    "a\\b",
    "ä",
  ]) {
    assert.equal(
      codeOf(() => parseRepositoryName(name)),
      "NAME_INVALID",
      name,
    );
  }
});

test("a tag is what the specification's grammar says", () => {
  fc.assert(fc.property(tags, (tag) => isTag(tag) && parseReference(tag) === tag));
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 5 }), (text) => isTag(text) === SPEC_TAG.test(text)),
    { numRuns: 2000 },
  );
  assert.ok(!isTag("a".repeat(129)));
  assert.ok(!isTag("a\n"));
});

test("a reference is a tag or a digest, and the error says which it failed to be", () => {
  fc.assert(fc.property(digests, (digest) => parseReference(digest) === digest));
  assert.equal(
    codeOf(() => parseReference("sha256:abc")),
    "DIGEST_INVALID",
  );
  for (const text of ["", ".a", "-a", "a/b", "a b"]) {
    assert.equal(
      codeOf(() => parseReference(text)),
      "MANIFEST_INVALID",
      text,
    );
  }
});

test("what is put together from host, name, tag and digest is taken apart again", () => {
  const optional = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
    fc.option(arbitrary, { nil: undefined });
  fc.assert(
    fc.property(optional(hosts), names, optional(tags), optional(digests), (host, name, tag, digest) => {
      // Without a host a first component such as `a.b` would be read as one, as docker does.
      fc.pre(host !== undefined || !/^(localhost|[^/]*\.[^/]*)\//.test(name));
      const text = `${host === undefined ? "" : `${host}/`}${name}${tag === undefined ? "" : `:${tag}`}${digest === undefined ? "" : `@${digest}`}`;
      assert.deepEqual(parseImageReference(text), { host, repository: name, reference: digest ?? tag ?? "latest" });
    }),
  );
});

test("the first component is a host by docker's rule", () => {
  const read = (text: string): [string | undefined, string, string] => {
    const { host, repository, reference } = parseImageReference(text);
    return [host, repository, reference];
  };
  assert.deepEqual(read("alpine"), [undefined, "alpine", "latest"]);
  assert.deepEqual(read("library/alpine:3"), [undefined, "library/alpine", "3"]);
  assert.deepEqual(read("ghcr.io/a/b"), ["ghcr.io", "a/b", "latest"]);
  assert.deepEqual(read("localhost/a"), ["localhost", "a", "latest"]);
  assert.deepEqual(read("localhost:5000/a:1"), ["localhost:5000", "a", "1"]);
  assert.deepEqual(read("localhost:5000"), [undefined, "localhost", "5000"]);
  assert.deepEqual(read("alpine.git"), [undefined, "alpine.git", "latest"]);
});

test("a command line's nonsense is refused with a code", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) =>
      ["none", "NAME_INVALID", "MANIFEST_INVALID", "DIGEST_INVALID"].includes(codeOf(() => parseImageReference(text))),
    ),
  );
  for (const text of ["", "/", "a:", "a@", "ghcr.io/", "a:1:2", "a@b@c", "https://ghcr.io/a"]) {
    assert.notEqual(
      codeOf(() => parseImageReference(text)),
      "none",
      text,
    );
  }
});

test("a megabyte of nonsense is refused at once, and quoted in part", () => {
  const started = performance.now();
  for (const piece of ["a", "-", "a-", "__", "a.", "/", "a/", ":", "@", "a:", "\0"]) {
    const text = `a${piece.repeat(1_000_000 / piece.length)}!`;
    for (const parse of [parseRepositoryName, parseReference, parseImageReference]) {
      assert.throws(
        () => parse(text),
        (error) => error instanceof RegistryError && error.message.length < 600,
      );
    }
    assert.ok(!isComponent(text));
  }
  // The longest that reaches the regular expressions.
  for (const piece of ["a", "-", "a-", "_", "a_", "a__"]) {
    assert.ok(!isRepositoryName(`${`a${piece}`.repeat(255).slice(0, 254)}!`));
  }
  assert.ok(performance.now() - started < 1000);
});
