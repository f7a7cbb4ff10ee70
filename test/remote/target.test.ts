import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { test } from "node:test";
import { createLog } from "../../src/base/log.ts";
import type { EndpointConfig } from "../../src/config/schema.ts";
import { digestOf } from "../../src/oci/digest.ts";
import { RemoteError } from "../../src/remote/remote-error.ts";
import { createTarget, type Pieces, type Target, type UploadSession } from "../../src/remote/target.ts";
import { makeImage, virtualBlob } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { endpointOf, fault, startScript, TestClock } from "./remotes.ts";

const blob = virtualBlob(3_000_000, "target");
const image = makeImage({ layers: [1000] });

async function openTarget(url: string, config: Partial<EndpointConfig> = {}): Promise<Target & { clock: TestClock }> {
  const clock = new TestClock();
  const target = await createTarget(endpointOf(url, config), {
    clock,
    log: await createLog({ level: "silent", format: "json" }),
    observe: { request: () => undefined, received: () => undefined },
  });
  return Object.assign(target, { clock });
}

function pieces(firstByte = 0, endByte = blob.sizeBytes): Pieces {
  async function* read(): AsyncGenerator<Buffer> {
    yield* blob.chunks(firstByte, endByte);
  }
  return { lengthBytes: endByte - firstByte, pieces: read() };
}

const nothing: Pieces = pieces(0, 0);

test("a blob goes up in one request, or in chunks that the registry tells the place of", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"], chunkMinLength: "1MiB" } } });
  await using target = await openTarget(registry.url);
  const whole = await target.startUpload("team/one", blob.digest);
  assert.deepEqual([whole.offsetBytes, whole.chunkMinBytes], [0, 1024 * 1024]);
  await target.finishUpload("team/one", whole, blob.digest, pieces());
  await registry.pullBlob("team/one", blob.digest);

  const first = await target.append(
    "team/two",
    await target.startUpload("team/two", blob.digest),
    pieces(0, 2_000_000),
  );
  assert.equal(first.offsetBytes, 2_000_000);
  assert.deepEqual(await target.findUpload("team/two", first), first);
  await assert.rejects(
    target.append("team/two", { ...first, offsetBytes: 1 }, pieces(1, 1_000_000)),
    (error: unknown) => error instanceof RemoteError && error.status === 416,
  );
  const second = await target.append("team/two", first, pieces(2_000_000));
  await target.finishUpload("team/two", second, blob.digest, nothing);
  await registry.pullBlob("team/two", blob.digest);
  assert.equal(await target.findUpload("team/two", second), undefined);

  assert.equal(await target.mount("team/three", blob.digest, "team/two"), "mounted");
  const session = await target.mount("team/three", digestOf(Buffer.from("unknown")), "team/two");
  assert.equal((session as UploadSession).offsetBytes, 0);
  await target.cancelUpload("team/three", session as UploadSession);
  assert.equal(await target.findUpload("team/three", session as UploadSession), undefined);
});

test("a manifest is stored, listed under its subject, and deleted; one without its blobs names them", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await using target = await openTarget(registry.url);
  const manifest = { bytes: image.manifest, mediaType: image.mediaType };
  const refused = await target.putManifest("team/app", "1", manifest);
  assert.deepEqual(new Set(refused.missing), new Set(image.blobs.keys()));
  for (const { digest, bytes } of image.blobs.values()) {
    async function* read(): AsyncGenerator<Buffer> {
      yield bytes;
    }
    const session = await target.startUpload("team/app", digest);
    await target.finishUpload("team/app", session, digest, { lengthBytes: bytes.byteLength, pieces: read() });
  }
  assert.deepEqual(await target.putManifest("team/app", "1", manifest), { listed: false });
  assert.equal(await target.deleteManifest("team/app", "1"), true);
  assert.equal(await target.deleteManifest("team/app", "1"), false);
  await assert.rejects(
    target.putManifest("team/app", "1", { bytes: Buffer.from("{}"), mediaType: image.mediaType }),
    fault("protocol", /refuses the manifest 1 \(400 MANIFEST_INVALID\)/),
  );
});

test("it logs in to push, for a mount also to read its source, and anew when the token ends", async () => {
  const scopes: string[][] = [];
  let refusals = 0;
  await using server = await startScript(({ path, query, headers, method }, response) => {
    if (path === "/token") {
      scopes.push(query.getAll("scope"));
      response.end(JSON.stringify({ token: `t${scopes.length}` }));
    } else if (headers.authorization === undefined || (method === "PUT" && refusals++ === 0)) {
      const challenge = `Bearer realm="${server.url}/token",scope="repository:a/b:pull,push"`;
      response.writeHead(401, { "www-authenticate": challenge }).end();
    } else if (method === "PUT") response.writeHead(201).end();
    else response.writeHead(202, { location: "/v2/a/b/blobs/uploads/1" }).end();
  });
  await using target = await openTarget(server.url);
  const session = await target.startUpload("a/b", blob.digest);
  assert.deepEqual(scopes, [["repository:a/b:pull,push"]]);
  await target.mount("a/b", blob.digest, "c/d");
  assert.deepEqual(scopes.at(-1), ["repository:a/b:pull,push", "repository:c/d:pull"]);
  // The bytes are spent: who sends them asks where the upload stands, by then with the new token.
  await assert.rejects(target.finishUpload("a/b", session, blob.digest, pieces()), fault("interrupted", /logged in/));
  await target.finishUpload("a/b", session, blob.digest, pieces());
  assert.equal(server.requests.at(-1)?.headers.authorization, `Bearer t${scopes.length}`);
});

test("an upload that goes on elsewhere takes no credentials there, and only where the guard lets it", async () => {
  await using elsewhere = await startScript((_, response) => void response.writeHead(201).end());
  let host = `127.0.0.1:${elsewhere.port}`;
  await using server = await startScript(({ headers }, response) => {
    if (headers.authorization === undefined) response.writeHead(401, { "www-authenticate": "Basic" }).end();
    else response.writeHead(202, { location: `http://${host}/store?state=1` }).end();
  });
  await using target = await openTarget(server.url, { auth: { username: "alice", password: "secret" } });
  const session = await target.startUpload("a/b", blob.digest);
  await target.finishUpload("a/b", session, blob.digest, pieces());
  const [put] = elsewhere.requests;
  assert.equal(put?.headers.authorization, undefined);
  assert.deepEqual([put?.query.get("state"), put?.query.get("digest")], ["1", blob.digest]);
  host = `localhost:${elsewhere.port}`;
  const inside = await target.startUpload("a/b", blob.digest);
  await assert.rejects(target.finishUpload("a/b", inside, blob.digest, pieces()), fault("refused", /trustedHosts/));
});

test("read-only credentials and other refusals are told with their status and code", async () => {
  await using server = await startScript((_, response) => {
    response.writeHead(403).end(JSON.stringify({ errors: [{ code: "DENIED" }] }));
  });
  await using target = await openTarget(server.url);
  await assert.rejects(
    target.startUpload("a/b", blob.digest),
    fault("denied", /\(403 DENIED\): check what the credentials/),
  );
  assert.equal(await target.mount("a/b", blob.digest, "c/d"), undefined);
});

test("what can't be read from the source is thrown as it is, and does not count against the target", async () => {
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await using target = await openTarget(registry.url);
  const broken = new RemoteError("server", "source.example", "answered 500");
  async function* read(): AsyncGenerator<Buffer> {
    yield Buffer.alloc(1000);
    throw broken;
  }
  for (let round = 0; round < 8; round++) {
    const session = await target.startUpload("team/app", blob.digest);
    const body: Pieces = { lengthBytes: blob.sizeBytes, pieces: read() };
    await assert.rejects(target.finishUpload("team/app", session, blob.digest, body), (error) => error === broken);
  }
  assert.ok(target.state.up);
});

test("a registry that takes nothing of an upload is given up, and bandwidth is kept to", async () => {
  const sockets: Socket[] = [];
  const server = createServer((socket) => void sockets.push(socket.pause()));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    await using target = await openTarget(url, { timeouts: { connect: 5000, firstByte: 15_000, progress: 100 } });
    const large = virtualBlob(64 * 1024 * 1024, "stall");
    async function* read(): AsyncGenerator<Buffer> {
      yield* large.chunks(0, large.sizeBytes);
    }
    const session = { location: `${url}/v2/a/b/blobs/uploads/1`, offsetBytes: 0, chunkMinBytes: 0 };
    const body: Pieces = { lengthBytes: large.sizeBytes, pieces: read() };
    await assert.rejects(target.finishUpload("a/b", session, large.digest, body), fault("timeout", /took nothing/));
  } finally {
    for (const socket of sockets) socket.destroy();
    server.close();
  }
  await using registry = await startRegistry({ config: { hosted: { namespaces: ["team"] } } });
  await using slow = await openTarget(registry.url, { bandwidth: 1_000_000 });
  await slow.finishUpload("team/app", await slow.startUpload("team/app", blob.digest), blob.digest, pieces());
  const restMs = slow.clock.slept.reduce((sum, ms) => sum + ms, 0);
  assert.ok(restMs > 2500, `${restMs} ms for 3 MB at 1 MB/s`);
});
