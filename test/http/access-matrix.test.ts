/** Who may do what, by a table written by hand, through HTTP: with a password, and with a token of the token service. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { adminApi, basic, operatorOf, passwordOf, tokenFor } from "../kit/people.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";

const old = makeImage({ layers: [100], seed: "old" });
const young = makeImage({ layers: [100], seed: "young" });

/**
 * A letter for each verb that is allowed: l pull, c push a new tag, p move a tag, d delete. A dot for each that is not.
 * team-*: of team crew; pat-*: pat's own (namespaces named after nobody, so that each visibility has one); global-*: of nobody.
 */
const EXPECTED = `
                 nobody outsider viewer contributor owner  pat   guest admin robot  maker  reader
team-private     ....   ....     l...   lcp.        lcpd   ....  l...  lcpd  lcp.   lc..   l...
team-protected   ....   l...     l...   lcp.        lcpd   l...  l...  lcpd  lcp.   lc..   l...
team-public      l...   l...     l...   lcp.        lcpd   l...  l...  lcpd  lcp.   lc..   l...
pat-private      ....   ....     ....   ....        ....   lcpd  ....  lcpd  ....   ....   l...
pat-protected    ....   l...     l...   l...        l...   lcpd  l...  lcpd  l...   ....   l...
pat-public       l...   l...     l...   l...        l...   lcpd  l...  lcpd  l...   ....   l...
global-private   ....   ....     ....   ....        ....   ....  ....  lcpd  ....   ....   l...
global-protected ....   l...     l...   l...        l...   l...  l...  lcpd  l...   ....   l...
global-public    l...   l...     l...   l...        l...   l...  l...  lcpd  l...   ....   l...
hub-private      ....   ....     l...   l...        l...   ....  ....  l...  l...   ....   l...
hub-protected    ....   l...     l...   l...        l...   l...  l...  l...  l...   ....   l...
hub-public       l...   l...     l...   l...        l...   l...  l...  l...  l...   ....   l...
`;

interface Person {
  name: string;
  credentials: Record<string, string>;
}

function start(upstream: string): Promise<TestRegistry> {
  const visibilities = ["private", "protected", "public"];
  const hubs = visibilities.map((visibility) => [`hub-${visibility}`, { url: upstream, visibility }]);
  return startRegistry({
    upstreams: Object.fromEntries(hubs) as Record<string, { url: string }>,
    config: { access: { open: false } },
  });
}

/** People, teams, namespaces and upstreams as the table has them; every repository holds a tag `old`. */
async function settle(registry: TestRegistry): Promise<Map<string, Person>> {
  const admin = await adminApi(registry);
  for (const name of ["admin", "outsider", "viewer", "contributor", "owner", "pat", "guest"])
    await admin("POST", "/users", { name, password: passwordOf(name) });
  await admin("POST", "/teams", { name: "crew" });
  await admin("POST", "/teams", { name: "visitors" });
  for (const role of ["viewer", "contributor", "owner"]) await admin("PUT", `/teams/crew/members/${role}`, { role });
  // An owner there, but what is granted to the team is a viewer's.
  await admin("PUT", "/teams/visitors/members/guest", { role: "owner" });
  for (const visibility of ["private", "protected", "public"]) {
    await admin("POST", "/namespaces", {
      name: `team-${visibility}`,
      owner: { kind: "team", name: "crew" },
      visibility,
    });
    await admin("POST", "/namespaces", {
      name: `pat-${visibility}`,
      owner: { kind: "personal", name: "pat" },
      visibility,
    });
    await admin("POST", "/namespaces", { name: `global-${visibility}`, visibility });
  }
  await admin("PUT", "/namespaces/team-private/grants/visitors", { role: "viewer" });
  await admin("PUT", "/upstreams/hub-private/grants/crew", {});
  const made = async (name: string, limits: object[], team?: string): Promise<Person> => {
    const { secret } = await admin("POST", "/robots", { name, limits, expires: "never", ...(team ? { team } : {}) });
    return { name, credentials: basic(name, String(secret)) };
  };
  const people = ["admin", "outsider", "viewer", "contributor", "owner", "pat", "guest"].map((name): Person => ({
    name,
    credentials: basic(name),
  }));
  people.push(
    { name: "nobody", credentials: {} },
    await made("robot", [{ repositories: ["**"], verbs: ["pull", "push"] }], "crew"),
    await made("maker", [{ repositories: ["team-*/**"], verbs: ["pull", "create"] }], "crew"),
    await made("reader", [{ repositories: ["team-*/**", "pat-*/**", "global-*/**", "hub-*/**"], verbs: ["pull"] }]),
  );
  return new Map(people.map((person) => [person.name, person]));
}

/** Sends the four requests of a cell, and puts back what they changed. @returns the letters of what was done, and the other statuses */
async function tried(
  registry: TestRegistry,
  space: string,
  nth: string,
  headersFor: (actions: string) => Promise<Record<string, string>>,
) {
  const operator = await operatorOf(registry);
  const repository = `${space}/app`;
  const hosted = !space.startsWith("hub-");
  const put = (tag: string, image: typeof old, headers: Record<string, string>) =>
    registry.send(
      "PUT",
      `/v2/${repository}/manifests/${tag}`,
      { "content-type": image.mediaType, ...headers },
      image.manifest,
    );
  const reset = async (): Promise<void> => {
    if (hosted) assert.equal((await put("old", old, operator)).status, 201);
  };
  const statuses: Record<string, number> = {};
  statuses["l"] = (await registry.get(`/v2/${repository}/manifests/old`, await headersFor("pull"))).status;
  statuses["c"] = (await put(`new-${nth}`, young, await headersFor("pull,push"))).status;
  statuses["p"] = (await put("old", young, await headersFor("pull,push"))).status;
  await reset();
  statuses["d"] = (await registry.send("DELETE", `/v2/${repository}/manifests/old`, await headersFor("delete"))).status;
  await reset();
  return statuses;
}

test("every role does in every kind of space what the table says, and nothing else", async () => {
  await using upstream = await startUpstream();
  upstream.add("app", "old", old);
  await using registry = await start(upstream.url);
  const people = await settle(registry);
  const operator = await operatorOf(registry);
  const [head = "", ...rows] = EXPECTED.trim().split("\n");
  const names = head.trim().split(/\s+/);
  for (const row of rows) {
    const [space = ""] = row.split(/\s+/);
    if (space.startsWith("hub-")) continue;
    for (const image of [old, young])
      for (const blob of image.blobs.values()) {
        const path = `/v2/${space}/app/blobs/uploads/?digest=${blob.digest}`;
        assert.equal((await registry.send("POST", path, operator, blob.bytes)).status, 201);
      }
    const path = `/v2/${space}/app/manifests/old`;
    assert.equal(
      (await registry.send("PUT", path, { "content-type": old.mediaType, ...operator }, old.manifest)).status,
      201,
    );
  }
  const wrong: string[] = [];
  for (const row of rows) {
    const [space = "", ...cells] = row.split(/\s+/);
    for (const [index, expected] of cells.entries()) {
      const person = people.get(names[index] ?? "");
      assert.ok(person, names[index]);
      for (const by of ["password", "token"] as const) {
        const headersFor = (actions: string): Promise<Record<string, string>> =>
          by === "password"
            ? Promise.resolve(person.credentials)
            : tokenFor(registry, person.credentials, `repository:${space}/app:${actions}`);
        const statuses = await tried(registry, space, `${person.name}-${by}`, headersFor);
        const found = Object.entries(statuses)
          .map(([letter, status]) => (isDone(letter, status) ? letter : "."))
          .join("");
        // A cached repository takes no pushes from anybody (405), and may have nothing to delete in the way that hosted ones have.
        const refused = space.startsWith("hub-") ? [401, 403, 405] : person.name === "nobody" ? [401] : [403];
        const others = Object.entries(statuses).filter(([letter]) => !found.includes(letter));
        if (found !== expected || others.some(([, status]) => !refused.includes(status)))
          wrong.push(`${space} ${person.name} by ${by}: ${found} ${JSON.stringify(statuses)}, expected ${expected}`);
      }
    }
  }
  assert.deepEqual(wrong, []);
});

function isDone(letter: string, status: number): boolean {
  return letter === "l" ? status === 200 : status === 201 || status === 202;
}

test("a first push makes a namespace for an administrator, and for a user only that of the user's own name", async () => {
  await using registry = await start("http://127.0.0.1:1");
  const people = await settle(registry);
  const begin = async (name: string, repository: string): Promise<number> => {
    const headers = people.get(name)?.credentials ?? {};
    return (await registry.send("POST", `/v2/${repository}/blobs/uploads/`, headers)).status;
  };
  assert.equal(await begin("outsider", "somewhere/app"), 403);
  assert.equal(await begin("nobody", "somewhere/app"), 401);
  assert.equal(await begin("outsider", "pat/app"), 403, "nobody takes another user's name");
  assert.equal(await begin("pat", "pat/app"), 202);
  assert.equal(await begin("pat", "pat"), 202);
  assert.equal(await begin("admin", "somewhere/app"), 202);
  const blob = [...old.blobs.values()][0] ?? assert.fail();
  const path = `/v2/pat/app/blobs/uploads/?digest=${blob.digest}`;
  assert.equal((await registry.send("POST", path, basic("pat"), blob.bytes)).status, 201);
  assert.equal(
    (await registry.get(`/v2/pat/app/blobs/${blob.digest}`, basic("pat"))).status,
    200,
    "it is pat's own now",
  );
  assert.equal((await registry.get(`/v2/pat/app/blobs/${blob.digest}`, basic("outsider"))).status, 403);
  const admin = await adminApi(registry);
  assert.deepEqual((await admin("GET", "/namespaces/pat"))["owner"], { kind: "personal", name: "pat" });
});
