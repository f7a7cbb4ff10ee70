import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { makeFolder, run } from "./machine.ts";
import { passwordOf, PEOPLE, startSettled } from "./people.ts";
import { makePodman } from "./podman.ts";

const PLAIN = "--tls-verify=false";

test("podman logs people in, lets each do with a team's images what the role allows, and logs them out", async () => {
  await using folder = await makeFolder();
  await using settled = await startSettled(folder.path);
  const { hidden, shown, image } = settled;
  const { host } = settled.entrepot;
  const { podman } = await makePodman(folder.path);
  const pulled = async (name: string, login: string): Promise<string> => {
    await podman("pull", "--quiet", PLAIN, "--authfile", login, name);
    const digests = await podman("image", "inspect", "--format", "{{json .RepoDigests}}", name);
    return digests.includes(image.digest) ? image.digest : digests;
  };
  const search = async (term: string, login: string): Promise<string[]> => {
    const found = await podman("search", PLAIN, "--authfile", login, "--format", "{{.Name}}", `${host}/${term}`);
    return found === "" ? [] : found.split("\n").sort();
  };

  const nobody = join(folder.path, "nobody.json");
  await writeFile(nobody, "{}");
  assert.equal(await pulled(`${shown}:v1`, nobody), image.digest);
  await assert.rejects(pulled(`${hidden}:v1`, nobody), /unauthorized: log in to pull hold\/app/);
  for (const target of [`${hidden}:v2`, `${shown}:v2`])
    await assert.rejects(
      podman("push", PLAIN, "--authfile", nobody, `${shown}:v1`, `docker://${target}`),
      /unauthorized|authentication required/,
    );
  // What nobody sees is not said to be there.
  assert.deepEqual(await search("app", nobody), [shown]);
  assert.deepEqual(await search("hold", nobody), []);

  for (const { name, pulls, pushes, deletes } of PEOPLE) {
    const login = join(folder.path, `${name}.json`);
    const logIn = (password: string): Promise<string> =>
      podman("login", PLAIN, "--authfile", login, "--username", name, "--password", password, host);
    await assert.rejects(logIn("a wrong one"), /invalid username\/password/);
    await assert.rejects(readFile(login), { code: "ENOENT" }, "nothing is stored");
    assert.match(await logIn(passwordOf(name)), /Login Succeeded/);

    assert.deepEqual(await search("app", login), pulls ? [shown, hidden] : [shown]);
    assert.deepEqual(await search("hold", login), pulls ? [hidden] : []);
    if (pulls) {
      assert.equal(await pulled(`${hidden}:v1`, login), image.digest);
      await podman("image", "rm", `${hidden}:v1`);
    } else await assert.rejects(pulled(`${hidden}:v1`, login), /denied: outsider may not pull hold\/app/);

    const own = `${hidden}:by-${name}`;
    const file = join(folder.path, "digest");
    // Another format, and so another digest than that of v1.
    const format = ["--format", "v2s2", "--digestfile", file];
    const push = podman("push", "--quiet", PLAIN, "--authfile", login, ...format, `${shown}:v1`, `docker://${own}`);
    if (pushes) {
      await push;
      assert.equal(await settled.digestOf(own), await readFile(file, "utf8"));
    }
    // Whoever may not pull is refused at a HEAD, which has no words.
    else await assert.rejects(push, pulls ? /denied: viewer may not push to hold\/app/ : /403 \(Forbidden\)/);
    assert.equal((await settled.tags()).includes(`by-${name}`), pushes);

    // skopeo deletes with podman's login.
    const remove = (tag: string): Promise<string> =>
      run("skopeo", ["delete", "--authfile", login, PLAIN, `docker://${tag}`]);
    if (deletes) await remove(own);
    else await assert.rejects(remove(`${hidden}:v1`), /DENIED/);

    await podman("logout", "--authfile", login, host);
    assert.deepEqual(JSON.parse(await readFile(login, "utf8")), { auths: {} });
    await assert.rejects(pulled(`${hidden}:v1`, login), /unauthorized: log in to pull hold\/app/);
  }
  assert.deepEqual(await settled.tags(), ["v1"]);

  // A token that leaves less than its user may.
  const ofToken = ["--user", "contributor"];
  const secret = await settled.command("token", "add", "laptop", ...ofToken, "--pull", "hold/**", "--expires", "1d");
  const login = join(folder.path, "token.json");
  await podman("login", PLAIN, "--authfile", login, "--username", "contributor", "--password", secret, host);
  assert.equal(await pulled(`${hidden}:v1`, login), image.digest);
  assert.deepEqual(await search("app", login), [hidden], "the token is for hold alone");
  await assert.rejects(podman("push", PLAIN, "--authfile", login, `${shown}:v1`, `docker://${hidden}:v2`), /denied: /);
  await settled.command("token", "remove", "laptop", ...ofToken);
  await assert.rejects(pulled(`${hidden}:v1`, login), /unauthorized|invalid username\/password/);
  assert.deepEqual(settled.entrepot.refusals(500), []);
});
