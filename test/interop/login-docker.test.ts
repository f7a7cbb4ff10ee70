import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { buildImage, startDocker, type Docker } from "./dockerd.ts";
import { startHub } from "./hub.ts";
import { makeFolder, run } from "./machine.ts";
import { passwordOf, PEOPLE, startSettled } from "./people.ts";

test("docker logs people in, lets each do with a team's images what the role allows, and logs them out", async () => {
  await using folder = await makeFolder();
  await using settled = await startSettled(folder.path);
  await using docker = await startDocker(folder.path);
  const { hidden, shown, image } = settled;
  const { host } = settled.entrepot;
  await buildImage(docker, join(folder.path, "context"), "built");

  for (const { name, pulls, pushes, deletes } of PEOPLE) {
    const person = clientOf(docker, folder.path, name);
    await assert.rejects(
      person.run("login", "--username", name, "--password", "a wrong one", host),
      /unauthorized: the user name or the password is wrong/,
    );
    assert.deepEqual(await person.logins(), [], "nothing is stored");
    assert.match(
      await person.run("login", "--username", name, "--password", passwordOf(name), host),
      /Login Succeeded/,
    );
    assert.deepEqual(await person.logins(), [host]);

    assert.equal(digestIn(await person.run("pull", `${shown}:v1`)), image.digest);
    if (pulls) assert.equal(digestIn(await person.run("pull", `${hidden}:v1`)), image.digest);
    else await assert.rejects(person.run("pull", `${hidden}:v1`), /denied: outsider may not pull hold\/app/);

    const own = `${hidden}:by-${name}`;
    await person.run("tag", "built", own);
    if (pushes) assert.equal(digestIn(await person.run("push", own)), await settled.digestOf(own));
    else await assert.rejects(person.run("push", own), new RegExp(`denied: ${name} may not push to hold/app`));
    assert.equal((await settled.tags()).includes(`by-${name}`), pushes);

    const found = await person.run("search", "--format", "{{.Name}}", `${host}/app`);
    assert.deepEqual(found.split("\n").sort(), pulls ? ["deck/app", "hold/app"] : ["deck/app"]);

    // skopeo deletes with docker's login.
    const remove = (tag: string): Promise<string> =>
      run("skopeo", ["delete", "--authfile", person.file, "--tls-verify=false", `docker://${tag}`]);
    if (deletes) await remove(own);
    else await assert.rejects(remove(`${hidden}:v1`), /DENIED/);

    await person.run("logout", host);
    assert.deepEqual(await person.logins(), []);
    await person.run("image", "rm", "--force", `${hidden}:v1`, `${shown}:v1`, own);
    await assert.rejects(person.run("pull", `${hidden}:v1`), /unauthorized: log in to pull hold\/app/);
  }
  // What the owner deleted had the contributor's tag, too.
  assert.deepEqual(await settled.tags(), ["v1"]);
  assert.deepEqual(settled.entrepot.refusals(500), []);
});

test("without a login, docker pulls what is public, also through the mirror, whatever it knows of Docker Hub", async () => {
  await using folder = await makeFolder();
  await using hub = await startHub(folder.path);
  await using settled = await startSettled(folder.path, {
    upstreams: { "docker.io": { url: hub.url } },
    image: hub.single,
  });
  const { hidden, shown, entrepot } = settled;
  await using docker = await startDocker(folder.path, { mirrors: [entrepot.url] });
  const nobody = clientOf(docker, folder.path, "nobody");

  assert.equal(digestIn(await nobody.run("pull", "interop-single:v1")), hub.single.digest);
  assert.equal(digestIn(await nobody.run("pull", `${shown}:v1`)), hub.single.digest);
  await assert.rejects(nobody.run("pull", `${hidden}:v1`), /unauthorized: log in to pull hold\/app/);
  for (const name of [`${hidden}:v2`, `${shown}:v2`]) {
    await nobody.run("tag", "interop-single:v1", name);
    await assert.rejects(nobody.run("push", name), /unauthorized: log in to push to/);
  }
  assert.equal(await nobody.run("search", "--format", "{{.Name}}", `${entrepot.host}/app`), "deck/app");

  // dockerd shows a mirror what it has for Docker Hub.
  const member = clientOf(docker, folder.path, "member-of-hub");
  const auth = Buffer.from("jane:the password at Docker Hub").toString("base64");
  await mkdir(join(folder.path, "member-of-hub"));
  await writeFile(member.file, JSON.stringify({ auths: { "https://index.docker.io/v1/": { auth } } }));
  assert.equal(digestIn(await member.run("pull", "interop-multi:v1")), hub.multi.digest);
  assert.deepEqual(entrepot.refusals(500), []);
});

test("docker logs in as a robot that may make tags, and is kept from moving them", async () => {
  await using folder = await makeFolder();
  await using settled = await startSettled(folder.path);
  await using docker = await startDocker(folder.path);
  const { hidden, image } = settled;
  const { host } = settled.entrepot;
  const secret = await settled.command(
    "robot",
    "add",
    "ci",
    "--team",
    "crew",
    "--create",
    "hold/**",
    "--expires",
    "1d",
  );
  const robot = clientOf(docker, folder.path, "ci");
  await robot.run("login", "--username", "ci", "--password", secret, host);
  await buildImage(docker, join(folder.path, "context"), `${hidden}:v2`);
  const digest = digestIn(await robot.run("push", `${hidden}:v2`));
  assert.equal(await settled.digestOf(`${hidden}:v2`), digest);

  await robot.run("tag", `${hidden}:v2`, `${hidden}:v1`);
  await assert.rejects(robot.run("push", `${hidden}:v1`), /denied: /);
  assert.equal(await settled.digestOf(`${hidden}:v1`), image.digest);

  await settled.command("robot", "disable", "ci");
  await assert.rejects(robot.run("pull", `${hidden}:v1`), /unauthorized/);
  await assert.rejects(robot.run("login", "--username", "ci", "--password", secret, host), /unauthorized/);
  assert.deepEqual(settled.entrepot.refusals(500), []);
});

interface Client {
  run: Docker["run"];
  /** Where docker stores logins. */
  file: string;
  /** Of which registries. */
  logins(): Promise<string[]>;
}

/** docker with logins of somebody's own. */
function clientOf(docker: Docker, folder: string, name: string): Client {
  const file = join(folder, name, "config.json");
  return {
    run: (...args) => docker.run("--config", join(folder, name), ...args),
    file,
    logins: async () => {
      const text = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "ENOENT") throw error;
        return "{}";
      });
      return Object.keys((JSON.parse(text) as { auths?: Record<string, unknown> }).auths ?? {});
    },
  };
}

/** What docker says that it pulled or pushed. */
function digestIn(output: string): string {
  return /digest: (sha256:[0-9a-f]{64})/i.exec(output)?.[1] ?? output;
}
