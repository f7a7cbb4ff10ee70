import assert from "node:assert/strict";
import { generateKeyPairSync, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { connect, createServer } from "node:tls";
import type { Clock } from "../../src/base/clock.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { libtrustId, SigningKeys } from "../../src/access/keys.ts";

const DAY_MS = 86_400_000;
const START_MS = Date.UTC(2026, 10, 22, 12);

class Stage implements AsyncDisposable {
  readonly root: string;
  readonly db: Database;
  nowMs = START_MS;
  rotate = 90 * DAY_MS;

  private constructor(root: string, db: Database) {
    this.root = root;
    this.db = db;
  }

  static async open(): Promise<Stage> {
    const root = await mkdtemp(join(tmpdir(), "entrepot-keys-"));
    return new Stage(root, await openSqlite(join(root, "entrepot.db")));
  }

  keys(): Promise<SigningKeys> {
    const clock: Clock = { now: () => this.nowMs, sleep: () => Promise.reject(new Error("nobody sleeps here")) };
    return SigningKeys.open({ db: this.db, clock, config: () => ({ life: 300_000, rotate: this.rotate }) });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.db[Symbol.asyncDispose]();
    await rm(this.root, { recursive: true });
  }
}

const signerOf = ({ signer }: SigningKeys): X509Certificate =>
  new X509Certificate(Buffer.from(signer.certificate, "base64"));

test("the first start makes an authority for ten years and a signer that it vouches for", async () => {
  await using stage = await Stage.open();
  const keys = await stage.keys();
  const authority = new X509Certificate(keys.certificates);
  assert.equal(authority.ca, true);
  assert.equal(authority.verify(authority.publicKey), true);
  assert.equal(authority.checkIssued(authority), true);
  assert.equal(authority.validToDate.getTime(), START_MS + 3650 * DAY_MS);
  const signer = signerOf(keys);
  assert.equal(signer.ca, false);
  assert.equal(signer.verify(authority.publicKey), true);
  assert.equal(signer.checkIssued(authority), true);
  assert.equal(signer.publicKey.asymmetricKeyDetails?.namedCurve, "prime256v1");
  assert.equal(signer.checkPrivateKey(keys.signer.privateKey), true);
  assert.ok(signer.validFromDate.getTime() < START_MS, "a verifier whose clock is behind takes it");
});

test("a chain of the signer and the authority holds for those who trust the authority alone", async () => {
  await using stage = await Stage.open();
  stage.nowMs = Date.now();
  const keys = await stage.keys();
  const key = keys.signer.privateKey.export({ type: "pkcs8", format: "pem" }) as string;
  // A handshake proves it as OpenSSL does: dates, signatures, names, and what each key may be used for.
  const server = createServer({ key, cert: signerOf(keys).toString() }, (socket) => socket.end());
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const client = connect({ port, host: "127.0.0.1", ca: keys.certificates, checkServerIdentity: () => undefined });
  try {
    await once(client, "secureConnect");
    assert.equal(client.authorized, true, String(client.authorizationError));
  } finally {
    client.destroy();
    server.close();
    await once(server, "close");
  }
});

test("a restart goes on with the same keys", async () => {
  await using stage = await Stage.open();
  const before = await stage.keys();
  const after = await stage.keys();
  assert.equal(after.signer.kid, before.signer.kid);
  assert.equal(after.certificates, before.certificates);
});

test("another key signs once the first has for as long as configured, and the authority stays", async () => {
  await using stage = await Stage.open();
  const keys = await stage.keys();
  const first = keys.signer.kid;
  const { certificates } = keys;
  stage.nowMs += 90 * DAY_MS - 1;
  await keys.rotate();
  assert.equal(keys.signer.kid, first);

  stage.nowMs += 1;
  await keys.rotate();
  assert.notEqual(keys.signer.kid, first);
  assert.equal(keys.certificates, certificates);
  assert.equal(signerOf(keys).verify(new X509Certificate(certificates).publicKey), true);
  assert.ok(keys.publicKey(first), "tokens by the former key are still good");

  // The last token by the former key ends after its life of five minutes.
  stage.nowMs += DAY_MS + 300_000 - 1;
  await keys.rotate();
  assert.ok(keys.publicKey(first));
  stage.nowMs += 1;
  await keys.rotate();
  assert.equal(keys.publicKey(first), undefined);
  assert.equal((await stage.db.all("SELECT id FROM signing_keys")).length, 2);
});

test("after a long time off, tokens by the key of before are still good", async () => {
  await using stage = await Stage.open();
  const first = (await stage.keys()).signer.kid;
  stage.nowMs += 400 * DAY_MS;
  const keys = await stage.keys();
  assert.equal(keys.signer.kid, first, "a start writes nothing by itself");
  await keys.rotate();
  assert.notEqual(keys.signer.kid, first);
  assert.ok(keys.publicKey(first), "tokens by it may have been issued up to now");
});

test("rotate 0s keeps the key for ever, as long as its certificate lasts", async () => {
  await using stage = await Stage.open();
  stage.rotate = 0;
  const keys = await stage.keys();
  const first = keys.signer.kid;
  stage.nowMs += 3000 * DAY_MS;
  await keys.rotate();
  assert.equal(keys.signer.kid, first);
});

test("near its end the authority is certified anew with its own key: whoever trusts the older certificate takes new signers", async () => {
  await using stage = await Stage.open();
  stage.rotate = 0;
  const keys = await stage.keys();
  const old = new X509Certificate(keys.certificates);
  stage.nowMs += 3650 * DAY_MS - 300 * DAY_MS;
  await keys.rotate();
  const renewed = new X509Certificate(keys.certificates);
  assert.equal(renewed.validToDate.getTime(), stage.nowMs + 3650 * DAY_MS);
  assert.deepEqual(renewed.publicKey, old.publicKey);
  const signer = signerOf(keys);
  assert.equal(signer.verify(old.publicKey), true);
  assert.equal(signer.checkIssued(old), true);
  assert.equal(signer.validToDate.getTime(), renewed.validToDate.getTime());
});

test("certificates that end after 2049 have their dates in the longer form", async () => {
  await using stage = await Stage.open();
  stage.nowMs = Date.UTC(2045, 0, 1);
  const authority = new X509Certificate((await stage.keys()).certificates);
  assert.equal(authority.validToDate.getTime(), stage.nowMs + 3650 * DAY_MS);
});

test("a key is named as libtrust does: 48 letters of base32 by fours", () => {
  const { publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  assert.match(libtrustId(publicKey), /^(?:[A-Z2-7]{4}:){11}[A-Z2-7]{4}$/);
});

test("the key set has the public half of each key, by the name that tokens give", async () => {
  await using stage = await Stage.open();
  const keys = await stage.keys();
  const { kid } = keys.signer;
  stage.nowMs += 90 * DAY_MS;
  await keys.rotate();
  const { keys: set } = keys.jwks;
  assert.deepEqual(
    set.map((key) => key["kid"]),
    [keys.signer.kid, kid],
  );
  for (const key of set) {
    assert.deepEqual(Object.keys(key).sort(), ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    assert.equal(key.crv, "P-256");
  }
});

test("the database that holds the keys is for its owner's eyes alone, one of before, too", async () => {
  const root = await mkdtemp(join(tmpdir(), "entrepot-keys-"));
  const file = join(root, "entrepot.db");
  try {
    await writeFile(file, "", { mode: 0o644 });
    await using db = await openSqlite(file);
    await db.transaction("durable", (tx) => tx.run("INSERT INTO repositories (name, created_at) VALUES ('a', 0)"));
    for (const path of [file, `${file}-wal`, `${file}-shm`]) {
      assert.equal((await stat(path)).mode & 0o777, 0o600, path);
    }
  } finally {
    await rm(root, { recursive: true });
  }
});
