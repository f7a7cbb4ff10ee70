import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseConfig } from "../../src/config/load.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import { isRepositoryName, type RepositoryName } from "../../src/oci/reference.ts";
import { Names } from "../../src/registry/names.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { errorOf } from "./clients.ts";

const names = new Names(
  parseConfig({
    upstreams: {
      "docker.io": { default: true },
      "ghcr.io": { url: "https://ghcr.io", aliases: ["gh", "ghcr.example:5443"] },
    },
    hosted: { namespaces: ["team"] },
  }),
);

const component = fc.stringMatching(/^[a-z0-9]{1,8}(-[a-z0-9]{1,4})?$/);
const path = fc
  .array(component, { minLength: 1, maxLength: 4 })
  .map((parts) => parts.join("/"))
  .filter((name): name is RepositoryName => isRepositoryName(name) && !/^(?:team|gh)(?:\/|$)/.test(name));

function locate(name: string, ns?: string): ReturnType<Names["locate"]> {
  return names.locate(name as RepositoryName, ns);
}

function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof RegistryError) return error.code;
    throw error;
  }
  return "none";
}

test("every spelling of a name means one repository", () => {
  fc.assert(
    fc.property(path, fc.constantFrom("ghcr.io", "gh"), (name, first) => {
      const { namespace: _, ...expected } = { ...locate(`ghcr.io/${name}`), namespace: undefined };
      assert.deepEqual(locate(`${first}/${name}`), { ...expected, namespace: undefined });
      for (const ns of ["ghcr.io", "gh", "ghcr.example:5443"]) {
        assert.deepEqual(locate(name, ns), { ...expected, namespace: ns });
        assert.deepEqual(locate(`${first}/${name}`, ns), { ...expected, namespace: ns });
      }
    }),
  );
});

test("a name without an upstream in front is the default upstream's, and the Hub's own images live under library/", () => {
  fc.assert(
    fc.property(path, (name) => {
      const located = locate(name);
      assert.ok(located.kind === "cached");
      assert.equal(located.upstream, "docker.io");
      assert.equal(located.remoteName, name.includes("/") ? name : `library/${name}`);
      assert.equal(located.repository, `docker.io/${located.remoteName}`);
      assert.deepEqual(locate(`docker.io/${name}`), located);
    }),
  );
  const elsewhere = locate("ghcr.io/alpine");
  assert.equal(elsewhere.repository, "ghcr.io/alpine", "library/ is Docker Hub's affair alone");
});

test("what is located is found again by its stored name, and names no upstream that is not configured", () => {
  fc.assert(
    fc.property(path, fc.constantFrom("ghcr.io", "docker.io"), (name, upstream) => {
      const located = locate(`${upstream}/${name}`);
      assert.deepEqual(names.stored(located.repository), located);
    }),
  );
  assert.equal(names.stored("quay.io/owner/app" as RepositoryName), undefined);
  assert.equal(names.stored("quay.io" as RepositoryName), undefined);
});

test("a hosted namespace is never an upstream's, unless the client names that upstream", () => {
  for (const name of ["team", "team/app", "team/a/b"]) {
    assert.deepEqual(locate(name), { kind: "hosted", repository: name });
  }
  assert.equal(locate("docker.io/team/app").repository, "docker.io/team/app");
  assert.equal(locate("team/app", "docker.io").repository, "docker.io/team/app");
  assert.equal(locate("teams/app").kind, "cached");
});

test("an unknown ns, and a host that is no upstream, are told as what they are", () => {
  for (const ns of ["quay.io", "", "GHCR.IO", "http://169.254.169.254", "constructor", "__proto__"]) {
    assert.throws(() => locate("owner/app", ns), {
      code: "NAME_UNKNOWN",
      message: /no configured upstream: configured upstreams are docker\.io, ghcr\.io; add others under upstreams/,
    });
  }
  assert.throws(() => locate("quay.io/owner/app"), { code: "NAME_UNKNOWN", message: /quay\.io is no configured/ });
  const without = new Names(parseConfig({ upstreams: { "ghcr.io": { url: "https://ghcr.io" } } }));
  assert.equal(
    codeOf(() => without.locate("owner/app" as RepositoryName, undefined)),
    "NAME_UNKNOWN",
  );
});

test("a name whose full spelling is too long is refused", () => {
  const name = `${"a/".repeat(125)}aaaaa`;
  assert.equal(name.length, 255);
  assert.equal(
    codeOf(() => locate(name)),
    "NAME_INVALID",
  );
  assert.equal(
    codeOf(() => locate("a".repeat(240))),
    "NAME_INVALID",
    "library/ counts, too",
  );
});

test("several upstreams serve side by side, each its own", async () => {
  const [one, other] = [makeImage({ layers: [10], seed: 1 }), makeImage({ layers: [10], seed: 2 })];
  await using hub = await startUpstream();
  hub.add("owner/app", "1", one);
  await using ghcr = await startUpstream();
  ghcr.add("owner/app", "1", other);
  await using mirror = await startRegistry({
    upstreams: { "docker.io": hub, "ghcr.io": { url: ghcr.url, aliases: ["gh"] } },
  });
  assert.deepEqual((await mirror.get("/v2/owner/app/manifests/1")).bytes, one.manifest);
  for (const path of [
    "ghcr.io/owner/app/manifests/1",
    "gh/owner/app/manifests/1",
    "owner/app/manifests/1?ns=ghcr.io",
    "owner/app/manifests/1?ns=gh",
  ]) {
    const answer = await mirror.get(`/v2/${path}`);
    assert.deepEqual(answer.bytes, other.manifest, path);
    assert.equal(answer.headers["oci-namespace"], path.split("?ns=")[1]);
  }
  assert.equal(hub.hits("GET", "/manifests/"), 1);
  assert.equal(ghcr.hits("GET", "/manifests/"), 1);
});

test("an unknown ns is answered 404 with the remedy, and dialled nowhere", async () => {
  await using upstream = await startUpstream();
  await using stranger = await startUpstream();
  await using mirror = await startRegistry({ upstreams: { "docker.io": upstream } });
  const answer = await mirror.get(`/v2/library/alpine/manifests/3?ns=${stranger.host}`);
  assert.equal(answer.status, 404);
  assert.equal(errorOf(answer).code, "NAME_UNKNOWN");
  assert.match(errorOf(answer).message, /add others under upstreams/);
  assert.equal(stranger.hits(), 0);
  assert.equal(upstream.hits(), 0);
});

test("allow and deny globs decide what may be pulled, and deny is stronger", async () => {
  const image = makeImage({ layers: [10] });
  const [layer] = image.layers;
  assert.ok(layer);
  await using upstream = await startUpstream();
  for (const name of ["library/alpine", "owner/app", "owner/secret", "other/app"]) upstream.add(name, "1", image);
  await using mirror = await startRegistry({
    upstreams: { "docker.io": { url: upstream.url, allow: ["library/*", "owner/**"], deny: ["owner/secret"] } },
  });
  for (const name of ["alpine", "owner/app"]) {
    assert.equal((await mirror.get(`/v2/${name}/manifests/1`)).status, 200, name);
  }
  upstream.resetCounters();
  for (const name of ["owner/secret", "other/app"]) {
    for (const path of [
      "manifests/1",
      `manifests/${image.digest}`,
      `blobs/${layer.digest}`,
      "tags/list",
      `referrers/${image.digest}`,
    ]) {
      const answer = await mirror.get(`/v2/${name}/${path}`);
      assert.equal(answer.status, 403, `${name}/${path}`);
      assert.equal(errorOf(answer).code, "DENIED");
    }
  }
  assert.equal(upstream.hits(), 0);
});

test("what is absent from a hosted namespace is absent: no upstream is asked", async () => {
  const image = makeImage({ layers: [10] });
  const [layer] = image.layers;
  assert.ok(layer);
  await using upstream = await startUpstream();
  upstream.add("team/app", "1", image);
  await using mirror = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: { hosted: { namespaces: ["team"] } },
  });
  for (const method of ["GET", "HEAD"]) {
    for (const path of ["manifests/1", `manifests/${image.digest}`, `blobs/${layer.digest}`, "tags/list"]) {
      assert.equal((await mirror.send(method, `/v2/team/app/${path}`)).status, 404, `${method} ${path}`);
    }
  }
  const referrers = await mirror.get(`/v2/team/app/referrers/${image.digest}`);
  assert.equal(referrers.status, 200, "referrers are never 404");
  assert.equal(upstream.hits(), 0);
});
