import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { startContainerd } from "./containerd.ts";
import { buildGoTool } from "./go-tools.ts";
import { makeFolder, run } from "./machine.ts";
import { passwordOf, PEOPLE, startSettled, type Settled } from "./people.ts";
import { copyIn } from "./skopeo.ts";

const PLAIN = "--tls-verify=false";

suite("with a registry that is closed to whoever has not logged in", () => {
  const stack = new AsyncDisposableStack();
  let folder: string;
  let settled: Settled;
  before(async () => {
    folder = stack.use(await makeFolder()).path;
    settled = stack.use(await startSettled(folder));
  });
  after(async () => {
    assert.deepEqual(settled.entrepot.refusals(500), []);
    await stack.disposeAsync();
  });

  test("skopeo logs people in and out, and does what their roles allow", async () => {
    const { hidden, image, entrepot } = settled;
    for (const { name, pulls, pushes, deletes } of PEOPLE) {
      const login = join(folder, `skopeo-${name}.json`);
      const skopeo = (...args: string[]): Promise<string> =>
        run("skopeo", [...args.slice(0, 1), PLAIN, ...args.slice(1)]);
      const logIn = (password: string): Promise<string> =>
        skopeo("login", "--authfile", login, "--username", name, "--password", password, entrepot.host);
      await assert.rejects(logIn("a wrong one"), /invalid username\/password/);
      await assert.rejects(readFile(login), { code: "ENOENT" }, "nothing is stored");
      await logIn(passwordOf(name));
      const inspected = skopeo("inspect", "--authfile", login, "--format", "{{.Digest}}", `docker://${hidden}:v1`);
      if (pulls) assert.equal((await inspected).trim(), image.digest);
      else await assert.rejects(inspected, /denied: outsider may not pull hold\/app/);
      const own = `${hidden}:skopeo-${name}`;
      const pushed = copyIn(image.source, own, ["--format", "v2s2", "--dest-authfile", login]);
      if (pushes) {
        await pushed;
        assert.ok((await settled.tags()).includes(`skopeo-${name}`));
      }
      // Whoever may not pull is refused at a HEAD, which has no words.
      else await assert.rejects(pushed, pulls ? /denied: viewer may not push to hold\/app/ : /403 \(Forbidden\)/);
      const deleted = skopeo("delete", "--authfile", login, `docker://${deletes ? own : `${hidden}:v1`}`);
      if (deletes) await deleted;
      else await assert.rejects(deleted, /DENIED/);
      await run("skopeo", ["logout", "--authfile", login, entrepot.host]);
      await assert.rejects(
        skopeo("inspect", "--authfile", login, `docker://${hidden}:v1`),
        /unauthorized: log in to pull hold\/app/,
      );
    }
    assert.deepEqual(await settled.tags(), ["v1"]);
  });

  test("containerd pulls and pushes with a name and password, and without them what is public", async () => {
    const { hidden, shown, image } = settled;
    await using containerd = await startContainerd(folder);
    const pull = async (name: string, ...user: string[]): Promise<string> => {
      await containerd.ctr("images", "pull", "--plain-http", ...user, "--snapshotter", "native", name);
      return containerd.digestOf(name);
    };
    assert.equal(await pull(`${shown}:v1`), image.digest);
    await assert.rejects(pull(`${hidden}:v1`), /401 Unauthorized/);
    await assert.rejects(pull(`${hidden}:v1`, "--user", "viewer:a wrong one"), /401 Unauthorized/);
    for (const { name, pulls, pushes } of PEOPLE) {
      const user = ["--user", `${name}:${passwordOf(name)}`];
      if (pulls) assert.equal(await pull(`${hidden}:v1`, ...user), image.digest);
      else await assert.rejects(pull(`${hidden}:v1`, ...user), /403 Forbidden/);
      const own = `${hidden}:containerd-${name}`;
      const pushed = containerd.ctr("images", "push", "--plain-http", ...user, own, `${shown}:v1`);
      if (pushes) {
        await pushed;
        assert.equal(await settled.digestOf(own), image.digest);
      } else await assert.rejects(pushed, /403 Forbidden/);
      if (pulls) await containerd.ctr("images", "remove", `${hidden}:v1`);
    }
  });

  test("helm logs in, pushes a chart, pulls it back byte for byte, and is refused after it has logged out", async () => {
    const { host } = settled.entrepot;
    const helm = await buildGoTool("helm", folder);
    const logIn = (name: string, password: string): Promise<string> =>
      helm("registry", "login", host, "--plain-http", "--username", name, "--password", password);
    const chart = join(folder, "harbour");
    await mkdir(chart);
    await writeFile(join(chart, "Chart.yaml"), "apiVersion: v2\nname: harbour\nversion: 0.1.0\n");
    await helm("package", chart, "--destination", folder);
    const archive = join(folder, "harbour-0.1.0.tgz");
    const charts = `oci://${host}/hold/charts`;

    await assert.rejects(logIn("contributor", "a wrong one"), /unauthorized: the user name or the password is wrong/);
    await logIn("contributor", passwordOf("contributor"));
    await helm("push", archive, charts, "--plain-http");
    await logIn("viewer", passwordOf("viewer"));
    await assert.rejects(helm("push", archive, charts, "--plain-http"), /denied: viewer may not push/);
    await helm("pull", `${charts}/harbour`, "--plain-http", "--version", "0.1.0", "--destination", chart);
    assert.deepEqual(await readFile(join(chart, "harbour-0.1.0.tgz")), await readFile(archive));
    await helm("registry", "logout", host);
    const again = helm("pull", `${charts}/harbour`, "--plain-http", "--version", "0.1.0", "--destination", chart);
    await assert.rejects(again, /unauthorized/);
  });

  test("curl -u does with a password, a robot's secret and a personal token what each allows", async () => {
    const { entrepot, image, command } = settled;
    const curl = (login: string | undefined, path: string, ...options: string[]): Promise<string> =>
      run("curl", ["-s", ...(login === undefined ? [] : ["-u", login]), ...options, `${entrepot.url}${path}`]);
    const status = (login: string | undefined, path: string, ...options: string[]): Promise<string> =>
      curl(login, path, "-o", "/dev/null", "-w", "%{http_code}", ...options);
    const catalog = async (login: string | undefined): Promise<string[]> =>
      (JSON.parse(await curl(login, "/v2/_catalog")) as { repositories: string[] }).repositories;
    const manifest = `/v2/hold/app/manifests/${image.digest}`;
    const scope = "repository:hold/app:pull";
    for (const { name, pulls } of PEOPLE) {
      const login = `${name}:${passwordOf(name)}`;
      assert.equal(await status(login, "/v2/"), "200");
      assert.equal(await status(login, manifest), pulls ? "200" : "403");
      assert.equal((await catalog(login)).includes("hold/app"), pulls);
      // By hand, as a client does it by itself.
      const { token } = JSON.parse(await curl(login, `/token?service=entrepot&scope=${scope}`)) as { token: string };
      const bearer = ["-H", `Authorization: Bearer ${token}`];
      assert.equal(await status(undefined, manifest, ...bearer), pulls ? "200" : "403");
      assert.equal(
        await status(undefined, manifest, ...bearer, "-X", "DELETE"),
        pulls && name === "owner" ? "401" : "403",
      );
    }
    assert.equal(await status("viewer:a wrong one", "/v2/"), "401");
    assert.equal(await status(undefined, "/v2/"), "401");
    assert.equal(await status(undefined, manifest), "401");
    assert.deepEqual(await catalog(undefined), ["deck/app"]);

    const robot = await command("robot", "add", "pilot", "--team", "crew", "--pull", "hold/**", "--expires", "1d");
    assert.equal(await status(`pilot:${robot}`, manifest), "200");
    assert.equal(await status(`pilot:${robot}`, manifest, "-X", "DELETE"), "403");
    const token = await command("token", "add", "shell", "--user", "viewer", "--expires", "1d");
    assert.equal(await status(`viewer:${token}`, manifest), "200");
    assert.equal(await status(`contributor:${token}`, manifest), "401", "it is another one's");
    const renewed = await command("robot", "rotate", "pilot");
    assert.equal(await status(`pilot:${robot}`, manifest), "401", "the former secret has ended");
    assert.equal(await status(`pilot:${renewed}`, manifest), "200");
  });
});
