/**
 * The environment variables of the `registry:2` image, so that a container of it can be replaced as it is. What would change who
 * may read what and cannot be done yet is a fault, never left out; everything else that is not understood is a warning.
 *
 * Source: distribution, docs/configuration.md, "Override specific configuration options"
 */
import { isComponent } from "../oci/reference.ts";
import type { Fault } from "./faults.ts";
import type { Settings } from "./settings.ts";

const UNSUPPORTED: readonly [names: RegExp, cause: string, remedy: string][] = [
  [
    /^REGISTRY_AUTH(?:_|$)/,
    "asks for access control, which this version does not have",
    "unset it, and let a proxy in front ask for credentials",
  ],
  [
    /^REGISTRY_HTTP_TLS_/,
    "asks for TLS, which this version does not serve",
    "unset it, and let a proxy in front serve TLS",
  ],
];
const CREDENTIALS = ["REGISTRY_PROXY_USERNAME", "REGISTRY_PROXY_PASSWORD"];

/** Sets what the REGISTRY_ variables say; empty ones say nothing. */
export function applyRegistryEnvironment(
  settings: Settings,
  env: NodeJS.ProcessEnv,
): { faults: Fault[]; warnings: string[] } {
  const faults: Fault[] = [];
  const warnings: string[] = [];
  const remote = env["REGISTRY_PROXY_REMOTEURL"] ?? "";
  const upstream = ["upstreams", upstreamName(remote)];

  for (const source of Object.keys(env).sort()) {
    const value = env[source] ?? "";
    if (!source.startsWith("REGISTRY_") || value === "") continue;
    const unsupported = UNSUPPORTED.find(([names]) => names.test(source));
    if (unsupported) {
      faults.push({ source, path: "", cause: unsupported[1], remedy: unsupported[2] });
    } else if (source === "REGISTRY_HTTP_ADDR") {
      settings.set(["server", "listen"], value, { source });
    } else if (source === "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY") {
      settings.set(["storage", "root"], value, { source });
    } else if (source === "REGISTRY_PROXY_REMOTEURL") {
      settings.set([...upstream, "url"], value, { source });
      settings.set([...upstream, "default"], true, { source });
    } else if (CREDENTIALS.includes(source)) {
      if (remote === "") warnings.push(`${source} is ignored: REGISTRY_PROXY_REMOTEURL is not set`);
    } else if (source === "REGISTRY_STORAGE_DELETE_ENABLED") {
      settings.set(["hosted", "delete"], value === "true" || value === "1", { source });
    } else {
      warnings.push(`${source} is ignored: it has no counterpart here`);
    }
  }

  const [username = "", password = ""] = CREDENTIALS.map((name) => env[name]);
  if (remote !== "" && (username !== "" || password !== "")) {
    // Together, in place of whatever a file says: its passwordFile must not meet this username.
    const auth = { ...(username !== "" && { username }), ...(password !== "" && { password }) };
    settings.set([...upstream, "auth"], auth, { source: "REGISTRY_PROXY_USERNAME" });
    if (password !== "")
      settings.set([...upstream, "auth", "password"], password, { source: "REGISTRY_PROXY_PASSWORD" });
  }
  return { faults, warnings };
}

function upstreamName(remote: string): string {
  const host = URL.canParse(remote) ? new URL(remote).host : "";
  if (host === "registry-1.docker.io") return "docker.io";
  return isComponent(host) ? host : "upstream";
}
