import assert from "node:assert/strict";
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { keepOperatorSecret, operatorSecretFile, readOperatorSecret } from "../../src/access/operator.ts";

async function newFolder(): Promise<AsyncDisposable & { root: string }> {
  const root = await mkdtemp(join(tmpdir(), "entrepot-"));
  return { root, [Symbol.asyncDispose]: () => rm(root, { recursive: true, force: true }) };
}

test("the operator's secret is made once, for its owner alone", async () => {
  await using folder = await newFolder();
  const secret = await keepOperatorSecret(folder.root);
  assert.match(secret, /^operator_[A-Za-z0-9_-]{43}$/);
  assert.equal((await stat(operatorSecretFile(folder.root))).mode & 0o777, 0o600);
  assert.equal(await keepOperatorSecret(folder.root), secret);
  assert.equal(await readOperatorSecret(folder.root), secret);
});

test("a secret that others could read is replaced", async () => {
  await using folder = await newFolder();
  const secret = await keepOperatorSecret(folder.root);
  await chmod(operatorSecretFile(folder.root), 0o640);
  const next = await keepOperatorSecret(folder.root);
  assert.notEqual(next, secret);
  assert.equal((await stat(operatorSecretFile(folder.root))).mode & 0o777, 0o600);
});

test("a secret that was cut short is none, and is replaced", async () => {
  await using folder = await newFolder();
  const path = operatorSecretFile(folder.root);
  for (const text of ["", "operator_short", `operator_${"x".repeat(44)}`]) {
    await writeFile(path, text, { mode: 0o600 });
    await assert.rejects(readOperatorSecret(folder.root), /holds no secret/);
    const secret = await keepOperatorSecret(folder.root);
    assert.equal((await readFile(path, "utf8")).trim(), secret);
  }
});

test("where there is none, reading it tells so", async () => {
  await using folder = await newFolder();
  await assert.rejects(readOperatorSecret(folder.root), { code: "ENOENT" });
});
