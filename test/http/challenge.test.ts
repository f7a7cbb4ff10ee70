import assert from "node:assert/strict";
import type { IncomingMessage } from "node:http";
import { createServer, request as send } from "node:http";
import { createServer as createTlsServer, request as sendTls } from "node:https";
import { once } from "node:events";
import { generateKeyPairSync } from "node:crypto";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import * as fc from "fast-check";
import { makeCertificate } from "../../src/access/certificate.ts";
import { challenge, scopeOf, type ChallengeFor } from "../../src/http/challenge.ts";
import type { Digest } from "../../src/oci/digest.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";
import type { Route } from "../../src/oci/route.ts";
import { parseChallenges } from "../../src/remote/challenge.ts";
import "../kit/seed.ts";

const SERVICE = { publicUrl: undefined, service: "entrepot" };

/** The challenge to a request that came over a socket with these headers. */
async function challengeOver(
  scheme: "http" | "https",
  headers: Record<string, string>,
  asked: ChallengeFor = {},
  service: Parameters<typeof challenge>[2] = SERVICE,
): Promise<string> {
  const answer = (request: IncomingMessage): string => challenge(request, asked, service);
  const server =
    scheme === "http"
      ? createServer((request, response) => void response.end(answer(request)))
      : createTlsServer(selfSigned(), (request, response) => void response.end(answer(request)));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const { port } = server.address() as AddressInfo;
    const options = { port, host: "127.0.0.1", headers, agent: false };
    const request = scheme === "http" ? send(options) : sendTls({ ...options, rejectUnauthorized: false });
    request.end();
    const [response] = (await once(request, "response")) as [IncomingMessage];
    return Buffer.concat(await response.toArray()).toString();
  } finally {
    server.close();
    await once(server, "close");
  }
}

function selfSigned(): { key: string; cert: string } {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const now = Date.now();
  return {
    key: privateKey.export({ type: "pkcs8", format: "pem" }) as string,
    cert: makeCertificate({
      subject: "test",
      issuer: "test",
      publicKey,
      issuerKey: privateKey,
      isAuthority: false,
      notBeforeMs: now - 1000,
      notAfterMs: now + 60_000,
    }),
  };
}

async function realm(headers: Record<string, string>, scheme: "http" | "https" = "http"): Promise<string | undefined> {
  return /realm="([^"]*)"/.exec(await challengeOver(scheme, headers))?.[1];
}

test("a challenge says where a token is to be had, for which service and for what", async () => {
  const asked: ChallengeFor = { scope: "repository:team/app:pull,push", error: "insufficient_scope" };
  assert.equal(
    await challengeOver("http", { host: "127.0.0.1:5000" }, asked),
    'Bearer realm="http://127.0.0.1:5000/token",service="entrepot",scope="repository:team/app:pull,push",error="insufficient_scope"',
  );
});

test("the public URL goes before all that a request says", async () => {
  const headers = { host: "evil.example.com", "x-forwarded-proto": "http" };
  const service = { publicUrl: "https://registry.example.com", service: "registry.example.com" };
  assert.equal(
    await challengeOver("http", headers, {}, service),
    'Bearer realm="https://registry.example.com/token",service="registry.example.com"',
  );
});

const NAMED = { host: "registry.example.com" };
const REALMS: [what: string, headers: Record<string, string>, expected: string][] = [
  ["plain HTTP", NAMED, "http://registry.example.com/token"],
  ["plain HTTP on a port", { host: "registry.example.com:5000" }, "http://registry.example.com:5000/token"],
  ["IPv6", { host: "[::1]:5000" }, "http://[::1]:5000/token"],
  ["a container's name", { host: "my_registry:5000" }, "http://my_registry:5000/token"],
  ["X-Forwarded-Proto", { ...NAMED, "x-forwarded-proto": "https" }, "https://registry.example.com/token"],
  [
    "X-Forwarded-Proto of two proxies",
    { ...NAMED, "x-forwarded-proto": "HTTPS, http" },
    "https://registry.example.com/token",
  ],
  [
    "X-Forwarded-Proto http",
    { ...NAMED, "x-forwarded-proto": "http", "x-forwarded-for": "10.0.0.1" },
    "http://registry.example.com/token",
  ],
  [
    "X-Forwarded-Proto of an address",
    { host: "192.0.2.18:5000", "x-forwarded-proto": "https" },
    "https://192.0.2.18:5000/token",
  ],
  ["a scheme that is none", { ...NAMED, "x-forwarded-proto": "httpsx://evil" }, "http://registry.example.com/token"],
  ["Forwarded", { ...NAMED, forwarded: "for=10.0.0.1;proto=https;by=10.0.0.2" }, "https://registry.example.com/token"],
  [
    "Forwarded by two",
    { ...NAMED, forwarded: 'for=10.0.0.1;proto="https", for=10.0.0.2;proto=http' },
    "https://registry.example.com/token",
  ],
  [
    "X-Forwarded-For without a scheme",
    { ...NAMED, "x-forwarded-for": "10.0.0.1" },
    "https://registry.example.com/token",
  ],
  ["the misspelt X-Forward-For", { ...NAMED, "x-forward-for": "10.0.0.1" }, "https://registry.example.com/token"],
  ["X-Real-IP", { ...NAMED, "x-real-ip": "10.0.0.1" }, "https://registry.example.com/token"],
  ["Via", { ...NAMED, via: "1.1 proxy" }, "https://registry.example.com/token"],
  ["Forwarded without a scheme", { ...NAMED, forwarded: "for=10.0.0.1" }, "https://registry.example.com/token"],
  ["a proxy to an address", { host: "192.0.2.18:5000", "x-forwarded-for": "10.0.0.1" }, "http://192.0.2.18:5000/token"],
  [
    "a proxy to an IPv6 address",
    { host: "[2001:db8::1]", "x-forwarded-for": "10.0.0.1" },
    "http://[2001:db8::1]/token",
  ],
  ["a proxy to localhost", { host: "localhost:5000", "x-forwarded-for": "10.0.0.1" }, "http://localhost:5000/token"],
  ["a host that is no address", { host: 'a", realm="http://evil' }, "http://entrepot/token"],
  ["a host with a path", { host: "a/b@c" }, "http://entrepot/token"],
];
for (const [what, headers, expected] of REALMS) {
  test(`the realm by ${what}`, async () => assert.equal(await realm(headers), expected));
}

test("the realm over TLS is https, whatever headers say", async () => {
  assert.equal(
    await realm({ host: "127.0.0.1:5000", "x-forwarded-proto": "http" }, "https"),
    "https://127.0.0.1:5000/token",
  );
});

test("no value gets out of its quotes, or adds a challenge", () => {
  const text = fc.string({
    unit: fc.oneof(
      fc.constantFrom('"', "\\", ",", " ", "\r", "\n", "Basic "),
      fc.string({ unit: "binary", maxLength: 1 }),
    ),
  });
  fc.assert(
    fc.property(text, text, text, (host, service, scope) => {
      const request = { headers: { host }, socket: {} } as IncomingMessage;
      const value = challenge(request, { scope }, { publicUrl: undefined, service });
      assert.match(value, /^[\x20-\x7e]*$/);
      const [only, ...others] = parseChallenges(value);
      assert.deepEqual(others, []);
      assert.equal(only?.scheme, "bearer");
      assert.match(
        value,
        /^Bearer realm="https?:\/\/[A-Za-z0-9_.:[\]-]+\/token",service="(?:[^"\\]|\\.)*",scope="(?:[^"\\]|\\.)*"$/,
      );
    }),
  );
});

const NAME = "team/app" as RepositoryName;
const DIGEST = `sha256:${"0".repeat(64)}` as Digest;
const MANIFEST: Route = { kind: "manifest", name: NAME, reference: DIGEST };
const SCOPES: [route: Route, method: string, scope: string | undefined][] = [
  [{ kind: "base" }, "GET", undefined],
  [{ kind: "catalog" }, "GET", "registry:catalog:*"],
  [MANIFEST, "GET", "repository:team/app:pull"],
  [MANIFEST, "HEAD", "repository:team/app:pull"],
  [MANIFEST, "PUT", "repository:team/app:pull,push"],
  [MANIFEST, "DELETE", "repository:team/app:delete"],
  [{ kind: "blob", name: NAME, digest: DIGEST }, "GET", "repository:team/app:pull"],
  [{ kind: "blob", name: NAME, digest: DIGEST }, "DELETE", "repository:team/app:delete"],
  [{ kind: "tags", name: NAME }, "GET", "repository:team/app:pull"],
  [{ kind: "referrers", name: NAME, digest: DIGEST }, "GET", "repository:team/app:pull"],
  [{ kind: "uploads", name: NAME }, "POST", "repository:team/app:pull,push"],
  [{ kind: "upload", name: NAME, id: "x" }, "PATCH", "repository:team/app:pull,push"],
  [{ kind: "upload", name: NAME, id: "x" }, "PUT", "repository:team/app:pull,push"],
  [{ kind: "upload", name: NAME, id: "x" }, "GET", "repository:team/app:pull,push"],
  [{ kind: "upload", name: NAME, id: "x" }, "DELETE", "repository:team/app:pull,push"],
];
for (const [route, method, scope] of SCOPES) {
  test(`${method} of ${route.kind} needs ${scope ?? "no scope"}`, () => {
    assert.equal(scopeOf(route, method, NAME, undefined), scope);
  });
}

test("a mount needs to read where it takes from", () => {
  const route: Route = { kind: "uploads", name: NAME };
  assert.equal(scopeOf(route, "POST", NAME, "other/app"), "repository:team/app:pull,push repository:other/app:pull");
});
