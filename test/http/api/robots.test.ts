import assert from "node:assert/strict";
import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { hash } from "bcryptjs";
import { Api } from "../../kit/api.ts";
import { pushImage, select } from "../../kit/hosted.ts";
import { makeImage } from "../../kit/images.ts";
import { startRegistry, type TestRegistry } from "../../kit/registry.ts";
import { basic, startWithOwners } from "./owners.ts";

const PULL = [{ repositories: ["team/**"], verbs: ["pull"] }];
const CI = { name: "ci", team: "team", limits: PULL, expires: "90d" };
const SECRET = /^entrepot_[A-Za-z0-9_-]{43}$/;

/** The names of a page or a list. */
function names(items: unknown): string {
  return (items as { name: string }[]).map(({ name }) => name).join(" ");
}

test("an owner adds a robot for its team, changes, rotates and removes it", async () => {
  await using here = await startWithOwners();
  const { api, as } = here;
  const [olga, none] = [as("olga"), undefined];
  const made = await api.expect(201, "POST", "/robots", CI, olga);
  const { secret, createdAt, expiresAt, ...rest } = made.body;
  assert.match(String(secret), SECRET);
  assert.deepEqual(rest, { name: "ci", description: "", team: "team", limits: PULL, disabled: false });
  assert.equal(Date.parse(String(expiresAt)) - Date.parse(String(createdAt)) <= 90 * 86_400_000, true);
  assert.equal(made.headers["location"], "/api/v1/robots/ci");

  const got = await api.expect(200, "GET", "/robots/ci", none, olga);
  assert.equal(got.headers["etag"], made.headers["etag"]);
  assert.deepEqual(got.body, { ...rest, createdAt, expiresAt });
  assert.deepEqual((await api.expect(200, "GET", "/robots", none, olga)).body["items"], [got.body]);
  const known = { ...olga, "if-none-match": String(got.headers["etag"]) };
  await api.expect(304, "GET", "/robots/ci", none, known);

  const isIn = async (password: unknown): Promise<boolean> => {
    const { status } = await here.registry.get("/api/v1/robots", basic("ci", String(password)));
    assert.ok(status === 200 || status === 401, String(status));
    return status === 200;
  };
  assert.equal(await isIn(secret), true);
  const changed = await api.expect(200, "PATCH", "/robots/ci", { disabled: true, expires: "never" }, olga);
  assert.deepEqual([changed.body["disabled"], changed.body["expiresAt"]], [true, undefined]);
  assert.equal(await isIn(secret), false, "disabled");
  await api.expect(
    412,
    "PATCH",
    "/robots/ci",
    { disabled: false },
    { ...olga, "if-match": String(got.headers["etag"]) },
  );
  const match = { ...olga, "if-match": String(changed.headers["etag"]) };
  const enabled = await api.expect(200, "PATCH", "/robots/ci", { disabled: false }, match);
  assert.equal(await isIn(secret), true, "enabled");

  await api.expect(412, "POST", "/robots/ci/rotate", {}, match);
  const rotated = await api.expect(200, "POST", "/robots/ci/rotate", { expires: "2099-01-31" }, olga);
  assert.match(String(rotated.body["secret"]), SECRET);
  assert.equal(rotated.body["expiresAt"], "2099-01-31T00:00:00.000Z");
  assert.notEqual(rotated.headers["etag"], enabled.headers["etag"]);
  assert.deepEqual([await isIn(secret), await isIn(rotated.body["secret"])], [false, true], "rotated");

  await api.expect(412, "DELETE", "/robots/ci", none, match);
  await api.expect(204, "DELETE", "/robots/ci", none, olga);
  assert.equal(await isIn(rotated.body["secret"]), false, "removed");
  await api.expect(404, "GET", "/robots/ci", none, olga);
});

test("robots of a team are for its owners, others for administrators; to everybody else there are none", async () => {
  await using here = await startWithOwners();
  const { api, as } = here;
  await api.expect(201, "POST", "/robots", CI, as("olga"));
  await api.expect(201, "POST", "/robots", { ...CI, name: "deploy", team: "other" }, as("vera"));
  await api.expect(201, "POST", "/robots", { ...CI, name: "mirror", team: undefined }, as("root"));
  const personal = await api.expect(201, "POST", "/tokens", { name: "laptop", expires: "1d" }, as("olga"));
  const robot = await api.expect(200, "POST", "/robots/ci/rotate", {}, as("olga"));
  const [token, ci] = [basic("olga", String(personal.body["secret"])), basic("ci", String(robot.body["secret"]))];

  const lists = { root: "ci deploy mirror", olga: "ci", carl: "", vera: "deploy" } as const;
  for (const [who, expected] of Object.entries(lists))
    assert.equal(
      names((await api.expect(200, "GET", "/robots", undefined, as(who as "root"))).body["items"]),
      expected,
      who,
    );
  const one = await api.expect(200, "GET", "/robots?team=other", undefined, as("root"));
  assert.equal(names(one.body["items"]), "deploy");
  const paged = await api.expect(200, "GET", "/robots?limit=2", undefined, as("root"));
  const rest = await api.expect(
    200,
    "GET",
    `/robots?limit=2&cursor=${String(paged.body["next"])}`,
    undefined,
    as("root"),
  );
  assert.equal(`${names(paged.body["items"])} ${names(rest.body["items"])}`, "ci deploy mirror");

  for (const who of [as("carl"), as("vera"), token, ci]) {
    await api.expect(404, "GET", "/robots/ci", undefined, who);
    await api.expect(404, "PATCH", "/robots/ci", { disabled: true }, who);
    await api.expect(404, "POST", "/robots/ci/rotate", {}, who);
    await api.expect(404, "DELETE", "/robots/ci", undefined, who);
    await api.expect(403, "POST", "/robots", { ...CI, name: "mine", team: undefined }, who);
  }
  for (const who of [as("carl"), token]) await api.expect(403, "POST", "/robots", { ...CI, name: "mine" }, who);
  for (const who of [as("vera"), ci]) {
    const { body } = await api.expect(404, "POST", "/robots", { ...CI, name: "mine" }, who);
    const { body: unknown } = await api.expect(404, "POST", "/robots", { ...CI, name: "mine", team: "nobody" }, who);
    assert.equal(String(body["detail"]).replace("team team", "team nobody"), unknown["detail"], "nor are there teams");
  }
  await api.expect(404, "DELETE", "/robots/mirror", undefined, as("olga"));
  await api.expect(401, "GET", "/robots");
  await api.expect(401, "POST", "/robots", CI);
  assert.equal((await api.expect(200, "GET", "/robots/ci", undefined, as("olga"))).body["disabled"], false);
});

test("what can't be a robot is refused, with what can", async () => {
  await using here = await startWithOwners();
  const { api, as } = here;
  const refused = async (status: number, change: object, words: RegExp): Promise<void> => {
    const { body } = await api.expect(status, "POST", "/robots", { ...CI, ...change }, as("root"));
    assert.match(String(body["detail"]), words);
  };
  await refused(409, { name: "olga" }, /there is a user olga already/);
  await refused(400, { name: "Ci" }, /name: /);
  await refused(404, { team: "nobody" }, /there is no team nobody/);
  await refused(400, { expires: undefined }, /expires: /);
  await refused(400, { expires: "yesterday" }, /expires: is not a duration/);
  await refused(400, { expires: "2020-01-01" }, /still to come/);
  await refused(400, { limits: [] }, /limits: /);
  await refused(400, { limits: [{ repositories: ["{a,b}"], verbs: ["pull"] }] }, /is not a glob of repositories/);
  await refused(400, { limits: [{ repositories: ["**"], verbs: ["admin"] }] }, /limits\.0\.verbs\.0/);
  await refused(400, { secret: "mine" }, /secret/);
  await api.expect(201, "POST", "/robots", CI, as("root"));
  await refused(409, {}, /there is a robot ci already/);
  await api.expect(409, "POST", "/users", { name: "ci", password: "a long enough password" }, as("root"));
});

test("a robot is not called as somebody of the htpasswd file is", async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), "entrepot-"));
  const path = join(folder.path, "htpasswd");
  await writeFile(path, `fred:${await hash("a password of fred", 4)}\n`);
  await using registry = await startRegistry({ config: { access: { htpasswd: { path, role: "admin" } } } });
  const [api, fred] = [await Api.of(registry), basic("fred", "a password of fred")];
  const { body } = await api.expect(409, "POST", "/robots", { ...CI, team: undefined, name: "fred" }, fred);
  assert.match(String(body["detail"]), /the name fred is taken/);
  await api.expect(201, "POST", "/robots", { ...CI, team: undefined }, fred);
});

test("secrets are in the answers that made them, and nowhere else", async () => {
  await using here = await startWithOwners();
  const { registry, api, as } = here;
  const made = await api.expect(201, "POST", "/robots", CI, as("olga"));
  const rotated = await api.expect(200, "POST", "/robots/ci/rotate", {}, as("olga"));
  const personal = await api.expect(201, "POST", "/tokens", { name: "laptop", expires: "never" }, as("olga"));
  const secrets = [made, rotated, personal].map(({ body }) => String(body["secret"]));
  await registry.get("/v2/", basic("ci", secrets[1] ?? ""));
  await registry.get("/v2/", { authorization: `Bearer ${secrets[2]}` });
  await registry.get("/v2/", basic("ci", secrets[0] ?? ""));
  await api.expect(200, "PATCH", "/robots/ci", { description: "builds" }, as("olga"));
  const told = [
    ...(await Promise.all(["/robots", "/robots/ci", "/tokens?user=olga", "/events", "/config"].map((path) => api.send("GET", path, undefined, as("root"))))),
    registry.log,
    ...["events", "robots", "tokens", "job_lines"].map((table) => select(registry, `SELECT * FROM ${table}`)),
  ].map((each) => JSON.stringify(each)); // prettier-ignore
  for (const secret of secrets) for (const text of told) assert.ok(!text.includes(secret.slice(9)), text.slice(0, 200));
});

test("a robot does what its limits say: one that may create moves no tag", async () => {
  await using here = await startWithOwners();
  const { registry, api, as } = here;
  await api.expect(201, "POST", "/namespaces", { name: "team", owner: { kind: "team", name: "team" } }, as("olga"));
  const limits = [{ repositories: ["team/app"], verbs: ["pull", "create"] }];
  const { body } = await api.expect(201, "POST", "/robots", { ...CI, limits }, as("olga"));
  const ci = basic("ci", String(body["secret"]));
  const robot: TestRegistry = {
    ...registry,
    send: (method, path, headers, bytes) => registry.send(method, path, { ...headers, ...ci }, bytes),
  };
  const [first, second] = [makeImage({ layers: [1000] }), makeImage({ layers: [1000], seed: 2 })];
  await pushImage(robot, "team/app", first, "1");
  await pushImage(robot, "team/app", first, "1");
  await pushImage(robot, "team/app", second, "2");
  const put = { "content-type": second.mediaType };
  assert.equal((await robot.send("PUT", "/v2/team/app/manifests/1", put, second.manifest)).status, 403);
  assert.equal((await robot.send("DELETE", "/v2/team/app/manifests/1")).status, 403);
  assert.equal((await robot.send("POST", "/v2/team/lib/blobs/uploads/")).status, 403);
  assert.equal((await robot.send("GET", "/v2/team/app/manifests/1", { accept: first.mediaType })).status, 200);
  await registry.until(async () => {
    const found = await api.expect(200, "GET", "/robots/ci", undefined, as("olga"));
    return found.body["lastUsedAt"] !== undefined;
  }, "its use is noted");
});
