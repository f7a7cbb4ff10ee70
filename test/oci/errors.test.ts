import assert from "node:assert/strict";
import { test } from "node:test";
import { RegistryError } from "../../src/oci/errors.ts";

test("an error's body is that of the specification, its status that of the table", () => {
  const error = new RegistryError("BLOB_UNKNOWN", "no such blob", { detail: { digest: "sha256:x" } });
  assert.equal(error.status, 404);
  assert.deepEqual(JSON.parse(JSON.stringify(error)), {
    errors: [{ code: "BLOB_UNKNOWN", message: "no such blob", detail: { digest: "sha256:x" } }],
  });
  assert.deepEqual(new RegistryError("DENIED", "no").toJSON(), { errors: [{ code: "DENIED", message: "no" }] });
});

test("a status may be more exact than the table's, and the cause is kept but not told", () => {
  const cause = new Error("connect ECONNREFUSED");
  const error = new RegistryError("UNAVAILABLE", "upstream is down", { status: 502, retryAfterSeconds: 3, cause });
  assert.deepEqual([error.status, error.retryAfterSeconds, error.cause], [502, 3, cause]);
  assert.ok(!JSON.stringify(error).includes("ECONNREFUSED"));
});
