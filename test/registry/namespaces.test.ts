import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf } from "../../src/oci/digest.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../kit/registry.ts";
import { startUpstream, type Upstream } from "../kit/upstream.ts";
import { pushBlob, pushImage, select, send } from "../kit/hosted.ts";
import { errorOf, layerOf } from "./clients.ts";

const image = makeImage({ layers: [100] });
const absent = digestOf(Buffer.from("nobody pushed this"));

function mirroring(upstream: Upstream): RegistryOptions {
  return { upstreams: { "docker.io": { url: upstream.url, default: true, aliases: ["hub"] } } };
}

function namespaces(registry: TestRegistry): unknown[] {
  return select(registry, "SELECT name FROM namespaces ORDER BY name").map(({ name }) => name);
}

test("a first push makes its namespace a hosted one, which it stays after a restart", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/other", "1", image);
  await using first = await startRegistry(mirroring(upstream));
  await pushImage(first, "team/app", image, "v1");
  const hits = upstream.hits();
  for (const registry of [first, undefined]) {
    if (registry === undefined) await first.stop();
    await using again =
      registry === undefined ? await startRegistry({ ...mirroring(upstream), root: first.root }) : undefined;
    const current = again ?? first;
    assert.deepEqual((await send(current, 200, "GET", "/v2/team/app/manifests/v1")).bytes, image.manifest);
    assert.equal(errorOf(await send(current, 404, "GET", "/v2/team/other/manifests/1")).code, "NAME_UNKNOWN");
    await send(current, 404, "GET", "/v2/team/manifests/1");
    assert.equal(upstream.hits(), hits, "nothing under it is asked of the upstream any more");
    await pushImage(current, "team/more", image, "v1");
    assert.deepEqual(namespaces(current), ["team"]);
  }
});

test("a name of one component is a namespace of its own", async () => {
  await using upstream = await startUpstream();
  await using registry = await startRegistry(mirroring(upstream));
  await pushImage(registry, "app", image, "v1");
  for (const path of ["manifests/v1", `blobs/${layerOf(image).digest}`])
    await send(registry, 200, "GET", `/v2/app/${path}`);
  assert.deepEqual(namespaces(registry), ["app"]);
});

test("what the mirror holds keeps its names: no push takes them over", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "1", image);
  upstream.add("library/alpine", "1", image);
  await using registry = await startRegistry(mirroring(upstream));
  await send(registry, 200, "GET", "/v2/team/app/manifests/1");
  await send(registry, 200, "GET", "/v2/alpine/manifests/1");
  for (const [name, rival] of [
    ["team/app", "docker.io/team/app"],
    ["team/new", "docker.io/team/app"],
    ["team", "docker.io/team/app"],
    ["alpine", "docker.io/library/alpine"],
    ["alpine/new", "docker.io/library/alpine"],
  ] as const) {
    for (const [method, path, body] of [
      ["POST", "blobs/uploads/", undefined],
      ["POST", `blobs/uploads/?mount=${layerOf(image).digest}&from=team/app`, undefined],
      ["POST", `blobs/uploads/?digest=${layerOf(image).digest}`, layerOf(image).bytes],
      ["PUT", "manifests/1", image.manifest],
    ] as const) {
      const refused = await send(
        registry,
        403,
        method,
        `/v2/${name}/${path}`,
        { "content-type": image.mediaType },
        body,
      );
      assert.equal(errorOf(refused).code, "DENIED");
      assert.match(errorOf(refused).message, new RegExp(`the mirror holds ${rival}.*hosted\\.namespaces`));
    }
  }
  assert.deepEqual(namespaces(registry), []);
  // Its neighbours in the alphabet are free.
  for (const name of ["tea/app", "team-x/app", "team0/app", "alpin/app"])
    await pushBlob(registry, name, Buffer.from(name));
});

test("library, names with a dot, upstreams and their aliases are never hosted", async () => {
  await using upstream = await startUpstream();
  await using registry = await startRegistry(mirroring(upstream));
  for (const [name, status, code] of [
    ["library/app", 405, "UNSUPPORTED"],
    ["docker.io/team/app", 405, "UNSUPPORTED"],
    ["hub/team/app", 405, "UNSUPPORTED"],
    ["quay.io/team/app", 404, "NAME_UNKNOWN"],
    ["team.example/app", 404, "NAME_UNKNOWN"],
  ] as const) {
    for (const path of ["blobs/uploads/", `blobs/uploads/?mount=${absent}`]) {
      const refused = await send(registry, status, "POST", `/v2/${name}/${path}`);
      assert.equal(errorOf(refused).code, code, name);
    }
    await send(registry, status, "PUT", `/v2/${name}/manifests/1`, {}, image.manifest);
  }
  assert.deepEqual(namespaces(registry), []);
  assert.deepEqual(select(registry, "SELECT name FROM repositories"), []);
});

test("a push that fails leaves no namespace and no repository", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "1", image);
  await using registry = await startRegistry(mirroring(upstream));
  await send(registry, 404, "PUT", "/v2/team/app/manifests/1", { "content-type": image.mediaType }, image.manifest);
  await send(registry, 400, "PUT", "/v2/team/app/manifests/1", {}, "{}");
  await send(registry, 400, "POST", `/v2/team/app/blobs/uploads/?digest=${absent}`, {}, "something else");
  const session = await send(registry, 202, "POST", "/v2/team/app/blobs/uploads/");
  await send(registry, 400, "PUT", `${String(session.headers["location"])}?digest=${absent}`, {}, "something else");
  await send(registry, 202, "POST", `/v2/team/app/blobs/uploads/?mount=${absent}&from=team/other`);
  assert.deepEqual(namespaces(registry), []);
  assert.deepEqual(select(registry, "SELECT name FROM repositories"), []);
  await send(registry, 200, "GET", "/v2/team/app/manifests/1");
});

test("a namespace that the mirror came to hold during the upload is refused at its end, with nothing kept", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "1", image);
  await using registry = await startRegistry(mirroring(upstream));
  const blob = layerOf(image);
  const session = await send(registry, 202, "POST", "/v2/team/app/blobs/uploads/");
  await send(registry, 200, "GET", "/v2/team/app/manifests/1");
  const path = `${String(session.headers["location"])}?digest=${blob.digest}`;
  assert.equal(errorOf(await send(registry, 403, "PUT", path, {}, blob.bytes)).code, "DENIED");
  assert.deepEqual(namespaces(registry), []);
  assert.deepEqual(select(registry, "SELECT digest FROM blobs"), []);
  await registry.pullBlob("team/app", blob.digest);
});

test("a daemon whose configuration gives a hosted namespace to an upstream does not start", async () => {
  await using upstream = await startUpstream();
  await using first = await startRegistry(mirroring(upstream));
  await pushImage(first, "team/app", image, "v1");
  await first.stop();
  const upstreams = { "docker.io": { url: upstream.url, default: true, aliases: ["team"] } };
  await assert.rejects(startRegistry({ upstreams, root: first.root }), /team is a hosted namespace.*docker\.io/);
  await using again = await startRegistry({ ...mirroring(upstream), root: first.root });
  await send(again, 200, "GET", "/v2/team/app/manifests/v1");
});
