import assert from "node:assert/strict";
import { test } from "node:test";
import { Proofs } from "../../src/access/proofs.ts";
import { ANONYMOUS } from "../../src/access/principal.ts";

test("as many tokens as anybody likes do not push out what else was proven", () => {
  const proofs = new Proofs({ now: () => 0 });
  const proof = { renew: undefined, caller: ANONYMOUS, generation: 0 };
  const password = proofs.nameOfHeader("Basic YWxpY2U6c2VjcmV0");
  const tokenOf = (i: number): ReturnType<Proofs["nameOfHeader"]> =>
    proofs.nameOfHeader(`Bearer ${String(i).padStart(300, "0")}`);
  proofs.set(password, proof);
  for (let i = 0; i < 10_001; i++) proofs.set(tokenOf(i), proof);
  assert.equal(proofs.get(password), proof);
  assert.equal(proofs.get(tokenOf(0)), undefined, "memory is bounded");
  assert.equal(proofs.get(tokenOf(10_000)), proof);
});
