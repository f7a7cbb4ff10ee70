import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { chmod, copyFile, cp, mkdir, readFile, realpath, symlink, writeFile } from "node:fs/promises";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { Docker } from "./dockerd.ts";

const execute = promisify(execFile);

/** What a Dockerfile's RUN, and the shebang of npm, need. */
const TOOLS = ["/bin/sh", "/usr/bin/env", "/usr/bin/install"];
const CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt";

/**
 * Makes an image that stands in for the official one of Node where no registry can be asked: this process's Node, the machine's npm with
 * its settings (where its registry is, whom it trusts), a shell, and the libraries that these load.
 */
export async function importNodeBase(docker: Docker, folder: string, name: string): Promise<void> {
  const root = join(folder, "node-base");
  for (const empty of ["dev", "etc", "proc", "root", "sys", "tmp", "usr/local/bin", "usr/local/etc", "var/lib"])
    await mkdir(join(root, empty), { recursive: true });
  await chmod(join(root, "tmp"), 0o1777);
  await writeFile(join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n");
  await writeFile(join(root, "etc/group"), "root:x:0:\nnode:x:1000:\n");

  await copyFile(process.execPath, join(root, "usr/local/bin/node"));
  for (const tool of TOOLS) await copyInto(root, tool);
  for (const program of [process.execPath, ...TOOLS])
    for (const library of await librariesOf(program)) await copyInto(root, library);

  await copyNpm(root);
  const environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
  if (existsSync(CERTIFICATES)) {
    await copyInto(root, CERTIFICATES);
    environment.push(`NODE_EXTRA_CA_CERTS=${CERTIFICATES}`);
  }
  const tar = `${root}.tar`;
  await execute("tar", ["--create", "--file", tar, "--directory", root, "--owner=0", "--group=0", "."]);
  await docker.run("import", ...environment.flatMap((set) => ["--change", `ENV ${set}`]), tar, name);
}

async function copyNpm(root: string): Promise<void> {
  const { stdout: found } = await execute("/bin/sh", ["-c", "command -v npm"]);
  const npm = dirname(dirname(await realpath(found.trim())));
  // Debian's own package is spread over many folders.
  assert.ok(existsSync(join(npm, "node_modules")), `${npm} is not an npm that brings its own modules`);
  await cp(npm, join(root, "usr/local/lib/node_modules/npm"), { recursive: true, verbatimSymlinks: true });
  await symlink("../lib/node_modules/npm/bin/npm-cli.js", join(root, "usr/local/bin/npm"));
  let settings = "";
  for (const key of ["globalconfig", "userconfig"]) {
    const { stdout: file } = await execute("npm", ["config", "get", key]);
    if (existsSync(file.trim())) settings += `${await readFile(file.trim(), "utf8")}\n`;
  }
  await writeFile(join(root, "usr/local/etc/npmrc"), settings);
}

/** The files that the dynamic loader brings in, the loader itself included. */
async function librariesOf(program: string): Promise<string[]> {
  const { stdout } = await execute("ldd", [program]);
  return [...stdout.matchAll(/(?:=> |^\s*)(\/\S+)/gm)].map((match) => match[1] ?? "");
}

async function copyInto(root: string, path: string): Promise<void> {
  await mkdir(join(root, dirname(path)), { recursive: true });
  await copyFile(path, join(root, path));
}
