import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { basic, startWithOwners } from "./owners.ts";

const LAPTOP = { name: "laptop", expires: "90d" };
const ALL = [{ repositories: ["**"], verbs: ["pull", "create", "push", "delete"] }];

test("a user makes tokens, logs in with them in place of the password, and removes them", async () => {
  await using here = await startWithOwners();
  const { api, as, registry } = here;
  const limits = [{ repositories: ["team/app"], verbs: ["pull"] }];
  const made = await api.expect(201, "POST", "/tokens", LAPTOP, as("olga"));
  const limited = await api.expect(201, "POST", "/tokens", { name: "ci", limits, expires: "never" }, as("olga"));
  const { secret, createdAt, expiresAt, ...rest } = made.body;
  assert.match(String(secret), /^entrepot_[A-Za-z0-9_-]{43}$/);
  assert.deepEqual(rest, { user: "olga", name: "laptop", limits: ALL });
  assert.ok(Date.parse(String(expiresAt)) > Date.parse(String(createdAt)));
  assert.deepEqual([limited.body["limits"], limited.body["expiresAt"]], [limits, undefined]);
  const all = await api.all("/tokens?user=olga&limit=1").catch(() => undefined);
  assert.equal(all, undefined, "not without logging in");
  const page = await api.expect(200, "GET", "/tokens?limit=1", undefined, as("olga"));
  const next = await api.expect(200, "GET", `/tokens?cursor=${String(page.body["next"])}`, undefined, as("olga"));
  assert.deepEqual(page.body["items"], [{ ...rest, createdAt, expiresAt }]);
  assert.deepEqual((next.body["items"] as { name: string }[]).map(({ name }) => name), ["ci"]); // prettier-ignore

  const statuses = async (): Promise<number[]> => {
    const presented = [basic("olga", String(secret)), basic("carl", String(secret)), { authorization: `Bearer ${String(secret)}` }]; // prettier-ignore
    return Promise.all(presented.map(async (each) => (await registry.get("/v2/", each)).status));
  };
  assert.deepEqual(await statuses(), [200, 401, 200], "with its user's name alone");
  await api.expect(204, "DELETE", "/tokens/laptop", undefined, as("olga"));
  assert.deepEqual(await statuses(), [401, 401, 401]);
  await api.expect(404, "DELETE", "/tokens/laptop", undefined, as("olga"));
});

test("with a token nobody looks after anything, not even an administrator", async () => {
  await using here = await startWithOwners();
  const { api, as } = here;
  const made = await api.expect(201, "POST", "/tokens", LAPTOP, as("root"));
  const token = basic("root", String(made.body["secret"]));
  await api.expect(403, "POST", "/tokens", { ...LAPTOP, name: "more" }, token);
  await api.expect(403, "GET", "/tokens", undefined, token);
  await api.expect(403, "GET", "/tokens?user=olga", undefined, token);
  await api.expect(403, "DELETE", "/tokens/laptop", undefined, token);
  await api.expect(403, "GET", "/users", undefined, token);
  await api.expect(401, "GET", "/tokens");
});

test("tokens of others are listed and removed by administrators, and made by nobody but the operator", async () => {
  await using here = await startWithOwners();
  const { api, as, registry } = here;
  await api.expect(201, "POST", "/tokens", LAPTOP, as("olga"));
  await api.expect(201, "POST", "/tokens", { ...LAPTOP, user: "carl" }, as("carl"));
  for (const who of ["carl", "vera"] as const) {
    await api.expect(403, "GET", "/tokens?user=olga", undefined, as(who));
    await api.expect(403, "DELETE", "/tokens/laptop?user=olga", undefined, as(who));
    await api.expect(403, "POST", "/tokens", { ...LAPTOP, name: "mine", user: "olga" }, as(who));
    await api.expect(403, "GET", "/tokens?user=nobody", undefined, as(who));
  }
  await api.expect(403, "POST", "/tokens", { ...LAPTOP, name: "mine", user: "olga" }, as("root"));
  const listed = await api.expect(200, "GET", "/tokens?user=olga", undefined, as("root"));
  assert.equal((listed.body["items"] as object[]).length, 1);
  assert.deepEqual((await api.expect(200, "GET", "/tokens", undefined, as("root"))).body["items"], [], "its own");
  await api.expect(204, "DELETE", "/tokens/laptop?user=olga", undefined, as("root"));

  const secret = (await readFile(join(registry.root, "operator-secret"), "utf8")).trim();
  const operator = basic("operator", secret);
  const { body } = await api.expect(201, "POST", "/tokens", { ...LAPTOP, user: "olga" }, operator);
  assert.equal((await registry.get("/v2/", basic("olga", String(body["secret"])))).status, 200);
  const all = await api.expect(200, "GET", "/tokens", undefined, operator);
  assert.deepEqual((all.body["items"] as { user: string }[]).map(({ user }) => user), ["carl", "olga"]); // prettier-ignore
  await api.expect(400, "POST", "/tokens", LAPTOP, operator);
  await api.expect(400, "DELETE", "/tokens/laptop", undefined, operator);
  await api.expect(404, "POST", "/tokens", { ...LAPTOP, user: "nobody" }, operator);
});

test("robots have no tokens, and what can't be one is refused", async () => {
  await using here = await startWithOwners();
  const { api, as } = here;
  const limits = [{ repositories: ["**"], verbs: ["pull"] }];
  const robot = await api.expect(201, "POST", "/robots", { name: "ci", limits, expires: "never" }, as("root"));
  await api.expect(403, "POST", "/tokens", LAPTOP, basic("ci", String(robot.body["secret"])));
  for (const wrong of [{ name: "A" }, { expires: undefined }, { expires: "soon" }, { limits: [] }, { more: 1 }])
    await api.expect(400, "POST", "/tokens", { ...LAPTOP, ...wrong }, as("olga"));
  await api.expect(201, "POST", "/tokens", LAPTOP, as("olga"));
  await api.expect(409, "POST", "/tokens", LAPTOP, as("olga"));
});
