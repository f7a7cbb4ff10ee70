/**
 * The environment variables of the `registry:2` image, so that a container of it can be replaced as it is. What would change who
 * may read what and cannot be done is a fault, never left out; everything else that is not understood is a warning.
 *
 * Source: distribution, docs/configuration.md, "Override specific configuration options"
 */
import { isComponent } from "../oci/reference.ts";
import type { Fault, Path } from "./faults.ts";
import type { Settings } from "./settings.ts";

const OWN_USERS =
  "unset it, and have people log in here: REGISTRY_AUTH=htpasswd with REGISTRY_AUTH_HTPASSWD_PATH, or users made with entrepot user add";

const UNSUPPORTED: readonly [names: RegExp, cause: string, remedy: string][] = [
  [/^REGISTRY_AUTH_TOKEN_/, "asks for the tokens of another service, which are not taken here", OWN_USERS],
  [/^REGISTRY_AUTH_(?!HTPASSWD_)/, "asks for access control that is not there", OWN_USERS],
  [
    /^REGISTRY_HTTP_TLS_CLIENTCAS/,
    "asks for TLS with nobody but those who have a client certificate, which is not done here",
    "unset it; ENTREPOT_SERVER__TLS__CLIENTAUTHORITY names the authorities whose certificates log in robots, and others log in otherwise",
  ],
  [
    /^REGISTRY_HTTP_TLS_LETSENCRYPT/,
    "asks for certificates from Let's Encrypt, which are not fetched here",
    "unset it, have certbot or the like fetch them, and name the files in REGISTRY_HTTP_TLS_CERTIFICATE and REGISTRY_HTTP_TLS_KEY: they are read anew when they change",
  ],
];

const HTPASSWD_PATH = "REGISTRY_AUTH_HTPASSWD_PATH";

/** What is one value there and one here. */
const SAME: Readonly<Record<string, Path>> = {
  REGISTRY_HTTP_ADDR: ["server", "listen"],
  REGISTRY_HTTP_TLS_CERTIFICATE: ["server", "tls", "certificate"],
  REGISTRY_HTTP_TLS_KEY: ["server", "tls", "key"],
  REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY: ["storage", "root"],
  [HTPASSWD_PATH]: ["access", "htpasswd", "path"],
};
const CREDENTIALS = ["REGISTRY_PROXY_USERNAME", "REGISTRY_PROXY_PASSWORD"];
/** Understood elsewhere, or without a use: the realm is told with Basic challenges, which are not sent here. */
const SILENT = ["REGISTRY_AUTH", "REGISTRY_AUTH_HTPASSWD_REALM"];

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
    if (!source.startsWith("REGISTRY_") || value === "" || SILENT.includes(source)) continue;
    const unsupported = UNSUPPORTED.find(([names]) => names.test(source));
    const same = SAME[source];
    if (unsupported) {
      faults.push({ source, path: "", cause: unsupported[1], remedy: unsupported[2] });
    } else if (same) {
      settings.set(same, value, { source });
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
  applyAuth(settings, env, faults, warnings);

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

/** There, whoever is in the file may do everything. A path alone says htpasswd, too. */
function applyAuth(settings: Settings, env: NodeJS.ProcessEnv, faults: Fault[], warnings: string[]): void {
  const path = env[HTPASSWD_PATH] ?? "";
  const kind = (env["REGISTRY_AUTH"] ?? "").toLowerCase() || (path === "" ? "" : "htpasswd");
  const fault = (cause: string, remedy: string) => faults.push({ source: "REGISTRY_AUTH", path: "", cause, remedy });
  if (kind === "htpasswd" && path === "") {
    fault(`is htpasswd, and ${HTPASSWD_PATH} is not set`, `name the file in ${HTPASSWD_PATH}`);
  } else if (kind === "htpasswd") {
    const source = env["REGISTRY_AUTH"] ? "REGISTRY_AUTH" : HTPASSWD_PATH;
    if (settings.get(["access", "htpasswd", "role"]) === undefined)
      settings.set(["access", "htpasswd", "role"], "owner", { source });
    settings.set(["access", "open"], false, { source });
  } else if (path !== "") {
    fault(`is ${kind}, and ${HTPASSWD_PATH} is set`, "keep one of the two: htpasswd takes the file");
  } else if (kind === "none") {
    warnings.push(
      "REGISTRY_AUTH is none, which opens nothing here: ENTREPOT_ACCESS__OPEN=everywhere lets everybody who reaches this push and delete",
    );
  } else if (kind === "token") {
    fault("asks for the tokens of another service, which are not taken here", OWN_USERS);
  } else if (kind !== "") {
    fault("asks for access control that is not there", OWN_USERS);
  }
}

function upstreamName(remote: string): string {
  const host = URL.canParse(remote) ? new URL(remote).host : "";
  if (host === "registry-1.docker.io") return "docker.io";
  return isComponent(host) ? host : "upstream";
}
