import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Agent, request } from "undici";
import { Api } from "../kit/api.ts";
import { pushImage } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { authority, serverCertificate, serverKey } from "../remote/certificates.ts";

type Headers = Record<string, string | string[] | undefined>;

const IMAGE = makeImage({ layers: [100] });

/** Whatever the server answers at, good and bad. What is not under /api has no list that could be asked for. */
async function everyRoute(
  registry: TestRegistry,
): Promise<[method: string, path: string, headers?: Record<string, string>][]> {
  const { operations } = await Api.of(registry);
  const [blob = ""] = IMAGE.blobs.keys();
  return [
    ...["/", "/livez", "/readyz", "/metrics", "/token", "/token/jwks.json", "/token/certificates.pem", "/setup"].map(
      (path): [string, string] => ["GET", path],
    ),
    ["GET", "/", { accept: "text/html" }],
    ["GET", "/token", { authorization: "Basic d3Jvbmc6d3Jvbmc=" }],
    ["GET", "/v1/_ping"],
    ["GET", "/v1/search?q=app"],
    ["GET", "/v2/"],
    ["GET", "/v2/", { authorization: "Bearer wrong" }],
    ["GET", "/v2/_catalog"],
    ["GET", "/v2/team/app/tags/list"],
    ["GET", "/v2/team/app/manifests/1"],
    ["HEAD", "/v2/team/app/manifests/1"],
    ["GET", "/v2/team/app/manifests/1", { "if-none-match": `"${IMAGE.digest}"` }],
    ["GET", `/v2/team/app/manifests/${IMAGE.digest}`],
    ["GET", `/v2/team/app/blobs/${blob}`],
    ["GET", `/v2/team/app/blobs/${blob}`, { range: "bytes=0-0" }],
    ["GET", `/v2/team/app/blobs/${blob}`, { range: "bytes=999999999-" }],
    ["GET", `/v2/team/app/referrers/${IMAGE.digest}`],
    ["GET", "/v2/team/absent/manifests/1"],
    ["POST", "/v2/team/app/blobs/uploads/"],
    ["PUT", "/v2/team/app/manifests/broken"],
    ["DELETE", "/v2/team/app/blobs/uploads/none"],
    ["PATCH", "/v2/"],
    ["GET", "/nothing/here"],
    ["DELETE", "/"],
    ["GET", "/api/v1/nothing"],
    ...operations.flatMap(({ method, path }): [string, string][] => {
      const filled = path.replaceAll(/\{[^}]*\}/g, "1");
      return [
        [method, `/api/v1${filled}`],
        [method, `/api/v1${filled}?wrong=1`],
      ];
    }),
  ];
}

test("every answer of every route forbids to guess its type, to run what is in it, to frame it and to keep it", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await pushImage(registry, "team/app", IMAGE, "1");
  const routes = await everyRoute(registry);
  assert.ok(routes.length > 80, "the operations were not read");
  for (const [method, path, sent] of routes) {
    const { status, headers } = await registry.send(method, path, sent);
    const told = `${method} ${path}: ${status} ${JSON.stringify(headers)}`;
    assert.equal(headers["x-content-type-options"], "nosniff", told);
    assert.equal(headers["referrer-policy"], "no-referrer", told);
    assert.equal(headers["x-frame-options"], "DENY", told);
    assert.match(String(headers["content-security-policy"]), /^default-src 'none'; /, told);
    assert.match(String(headers["content-security-policy"]), /\bframe-ancestors 'none'/, told);
    assert.equal(headers["strict-transport-security"], undefined, told);
    assert.equal(headers["server"] ?? headers["x-powered-by"], undefined, told);
    const byDigest = /\/(?:blobs|manifests)\/sha256:/.test(path) && method === "GET";
    assert.match(
      String(headers["cache-control"]),
      byDigest ? /^max-age=\d+, immutable$/ : /^no-(?:store|cache)$/,
      told,
    );
  }
});

test("what somebody who says who it is gets is not for caches that others share", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await pushImage(registry, "team/app", IMAGE, "1");
  // Access is open: the credentials are not looked at, but a cache in front does not know.
  const sent = { authorization: "Basic bm9ib2R5Om5vdGhpbmc=" };
  for (const path of [`manifests/${IMAGE.digest}`, ...[...IMAGE.blobs.keys()].map((digest) => `blobs/${digest}`)]) {
    const { status, headers } = await registry.get(`/v2/team/app/${path}`, sent);
    assert.equal(status, 200);
    assert.match(String(headers["cache-control"]), /^private, max-age=\d+, immutable$/, path);
  }
});

test("HSTS goes out over native TLS where publicUrl says https at the standard port, and nowhere else", async () => {
  const folder = await mkdtemp(join(tmpdir(), "entrepot-"));
  const tls = { certificate: join(folder, "crt"), key: join(folder, "key") };
  try {
    await writeFile(tls.certificate, serverCertificate);
    await writeFile(tls.key, serverKey);
    const cases: [server: object, sent: string | undefined][] = [
      [{ tls, publicUrl: "https://registry.example.com" }, "max-age=31536000"],
      [{ tls, publicUrl: "https://registry.example.com:5000" }, undefined],
      [{ tls }, undefined],
      [{ publicUrl: "https://registry.example.com" }, undefined],
    ];
    for (const [server, sent] of cases) {
      await using registry = await startRegistry({ config: { server: { ...server } } });
      const headers = await headersOf(`${registry.url}/v2/`);
      assert.equal(headers["strict-transport-security"], sent, JSON.stringify(server));
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});

async function headersOf(url: string): Promise<Headers> {
  const agent = new Agent({ connect: { ca: authority } });
  const { headers, body } = await request(url, { dispatcher: agent });
  await body.dump();
  await agent.close();
  return headers;
}
