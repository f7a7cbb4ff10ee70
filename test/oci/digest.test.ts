import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { algorithmOf, digestOf, hexOf, isDigest, parseDigest, proves, startHash } from "../../src/oci/digest.ts";
import { RegistryError } from "../../src/oci/errors.ts";

const ALGORITHMS = fc.constantFrom("sha256", "sha512");

test("the digests of abc are those of FIPS 180-4", () => {
  const abc = Buffer.from("abc");
  assert.equal(digestOf(abc), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  assert.equal(
    digestOf(abc, "sha512"),
    "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
  );
});

test("bytes in any pieces prove their digest, and no other bytes do", () => {
  fc.assert(
    fc.property(ALGORITHMS, fc.array(fc.uint8Array(), { minLength: 1 }), (algorithm, pieces) => {
      const digest = digestOf(Buffer.concat(pieces), algorithm);
      assert.equal(parseDigest(digest), digest);
      assert.equal(`${algorithmOf(digest)}:${hexOf(digest)}`, digest);
      const whole = startHash(digest);
      for (const piece of pieces) whole.update(piece);
      assert.ok(proves(whole, digest));
      const more = startHash(digest);
      for (const piece of [...pieces, Buffer.of(0)]) more.update(piece);
      assert.ok(!proves(more, digest));
    }),
  );
});

test("only the canonical spelling is a digest", () => {
  const hex = "a".repeat(64);
  const refused = [
    "",
    "sha256:",
    hex,
    `sha256:${hex.toUpperCase()}`,
    `SHA256:${hex}`,
    `sha256:${hex}a`,
    `sha256:${hex.slice(1)}`,
    `sha256:${hex}\n`,
    ` sha256:${hex}`,
    `sha256-${hex}`,
    `sha512:${hex}`,
    `sha256:${hex}${hex}`,
    `sha384:${"a".repeat(96)}`,
    `md5:${"a".repeat(32)}`,
    `sha256:../${"a".repeat(61)}`,
    `sha256:${"a".repeat(63)}\0`,
    `sha256:${"a".repeat(63)}\u0661`,
  ];
  for (const text of refused) {
    assert.equal(isDigest(text), false, text);
    assert.throws(() => parseDigest(text), { code: "DIGEST_INVALID", status: 400 }, text);
  }
  assert.ok(isDigest(`sha256:${hex}`));
  assert.ok(isDigest(`sha512:${hex}${hex}`));
});

test("one wrong character anywhere makes it no digest", () => {
  const wrong = fc.string({ unit: "binary", minLength: 1, maxLength: 1 }).filter((one) => !/^[a-f0-9]$/.test(one));
  fc.assert(
    fc.property(ALGORITHMS, fc.uint8Array(), fc.nat(), wrong, (algorithm, bytes, where, character) => {
      const digest = digestOf(bytes, algorithm);
      const at = 7 + (where % hexOf(digest).length);
      assert.equal(isDigest(digest.slice(0, at) + character + digest.slice(at + 1)), false);
    }),
  );
});

test("a megabyte of nonsense is refused at once, and quoted in part", () => {
  const started = performance.now();
  for (const text of [`sha256:${"a".repeat(1_000_000)}`, "sha256:".repeat(150_000), "\0".repeat(1_000_000)]) {
    assert.throws(
      () => parseDigest(text),
      (error) => error instanceof RegistryError && error.message.length < 300,
    );
  }
  assert.ok(performance.now() - started < 1000);
});
