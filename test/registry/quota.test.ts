import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { checkFits, leftBytes, QuotaExceeded, quotaOf, refusal, warning } from "../../src/registry/quota.ts";
import { namespaceOf, type RepositoryName } from "../../src/oci/reference.ts";

const MIB = 1024 * 1024;

test("the first glob that matches a namespace says what it may hold", () => {
  const rules = { "team-a": 10, "team-*": 20, "{x,y}": 30 };
  assert.equal(quotaOf(rules, "team-a"), 10);
  assert.equal(quotaOf(rules, "team-b"), 20);
  assert.equal(quotaOf(rules, "y"), 30);
  assert.equal(quotaOf(rules, "z"), undefined);
  assert.equal(quotaOf({ "team-*": 20, "team-a": 10 }, "team-a"), 20);
  assert.equal(quotaOf({}, "team-a"), undefined);
});

test("a namespace is the first component of a name, be it the only one", () => {
  assert.equal(namespaceOf("team/app/web" as RepositoryName), "team");
  assert.equal(namespaceOf("team" as RepositoryName), "team");
});

test("what is refused is exactly what does not fit, and nothing new always fits", () => {
  const bytes = fc.nat({ max: 1000 });
  fc.assert(
    fc.property(bytes, bytes, bytes, bytes, (maxBytes, usedBytes, underWayBytes, addedBytes) => {
      const standing = { namespace: "team", maxBytes, usedBytes, underWayBytes };
      const fits = addedBytes === 0 || usedBytes + underWayBytes + addedBytes <= maxBytes;
      if (fits) checkFits(standing, addedBytes);
      else assert.throws(() => checkFits(standing, addedBytes), QuotaExceeded);
      assert.ok(leftBytes(standing) >= 0);
    }),
  );
});

test("a refusal names the namespace, its quota, what it holds, what was asked for and the remedy", () => {
  const refused = refusal(
    { namespace: "team", maxBytes: 10 * MIB, usedBytes: 9 * MIB, underWayBytes: MIB / 2 },
    2 * MIB,
  );
  assert.equal(refused.code, "DENIED");
  assert.equal(refused.status, 403);
  assert.equal(
    refused.message,
    "namespace team may hold 10.0 MiB (hosted.quotas) and holds 9.0 MiB, 512 KiB more are being uploaded: " +
      "this push needs 2.0 MiB at least. Delete what is not needed and collect garbage, or have the quota raised",
  );
  assert.deepEqual(refused.detail, {
    namespace: "team",
    quotaBytes: 10 * MIB,
    usedBytes: 9 * MIB,
    underWayBytes: MIB / 2,
    askedBytes: 2 * MIB,
  });
});

test("from 85 % on there is a warning, also beyond the quota", () => {
  const quota = { namespace: "team", maxBytes: 100 * MIB };
  assert.equal(warning(quota, 85 * MIB - 1), undefined);
  assert.equal(warning(quota, 85 * MIB), "namespace team holds 85.0 MiB of the 100 MiB that it may (85 %)");
  assert.equal(warning(quota, 150 * MIB), "namespace team holds 150 MiB of the 100 MiB that it may (150 %)");
});
