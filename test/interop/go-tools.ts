import { access, mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { find, run, type RunOptions } from "./machine.ts";

/** Clients that few distributions package: what builds each, at the version that these tests were written against. */
const GO_PACKAGES = {
  crane: "github.com/google/go-containerregistry/cmd/crane@v0.22.1",
  helm: "helm.sh/helm/v3/cmd/helm@v3.21.4",
  regctl: "github.com/regclient/regclient/cmd/regctl@v0.11.7",
  registry: "github.com/distribution/distribution/v3/cmd/registry@v3.1.2",
  regsync: "github.com/regclient/regclient/cmd/regsync@v0.11.7",
  zot: "zotregistry.dev/zot/v2/cmd/zot@v2.1.20",
};
/** What a build wants beside Go. */
const BUILD_ENV: Partial<Record<GoTool, Record<string, string>>> = {
  zot: { GOEXPERIMENT: "jsonv2", CGO_ENABLED: "0" },
};
const BUILD_MS = 480_000;
export type GoTool = keyof typeof GO_PACKAGES;

/**
 * Builds a tool, unless this user built that version before.
 * @param folder what the tool keeps about registries and logins goes here
 * @returns what runs it: the arguments in, its standard output out, trimmed
 * @throws AssertionError where Go is missing; Error with the tool's output, for an exit status other than 0
 */
export async function buildGoTool(name: GoTool, folder: string): Promise<(...args: string[]) => Promise<string>> {
  const path = await goToolPath(name, folder);
  const options: RunOptions = { env: { HOME: folder, XDG_CACHE_HOME: folder, XDG_CONFIG_HOME: folder } };
  return async (...args) => (await run({ path }, args, options)).trim();
}

/**
 * Where a tool lies; built, unless this user built that version before: half a minute for each but helm, which takes two, and registries,
 * which take more.
 * @param folder Go is run in it
 * @throws AssertionError where Go is missing; Error with what Go says
 */
export async function goToolPath(name: GoTool, folder: string): Promise<string> {
  const source = GO_PACKAGES[name];
  const cache = process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache");
  const path = join(cache, "entrepot-interop", source.replaceAll("/", "_"), name);
  const built = await access(path).then(
    () => true,
    () => false,
  );
  if (!built) {
    const go = find("go", ["/usr/local/go/bin"], "install Go 1.26 or later (https://go.dev/dl)");
    await mkdir(dirname(path), { recursive: true });
    // Beside its place: whatever ends the build leaves nothing there that looks like the tool.
    const draft = await mkdtemp(`${dirname(path)}-`);
    try {
      const env = { ...BUILD_ENV[name], GOBIN: draft };
      await run({ path: go }, ["install", "-ldflags=-s -w", source], { env, cwd: folder, timeoutMs: BUILD_MS });
      await rename(join(draft, name), path);
    } finally {
      await rm(draft, { recursive: true, force: true });
    }
  }
  return path;
}
