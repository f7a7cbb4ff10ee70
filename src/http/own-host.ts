import { isIP } from "node:net";
import { parseListen, type Config } from "../config/schema.ts";
import { isOnThisMachine } from "./client-address.ts";

/**
 * Tells whether a `Host` header is one that no stranger's web page can be under: absent, an IP address, localhost, or a name that the
 * configuration gives this server. A page that has its own name lead to this machine (DNS rebinding) is taken by the browser for one of this
 * server, and may read and change whatever those on this machine may; but the browser says under which name it came.
 */
export function ownHostReader({
  listen,
  publicUrl,
}: Pick<Config["server"], "listen" | "publicUrl">): (host: string | undefined) => boolean {
  const address = parseListen(listen);
  const listened = address && "host" in address ? address.host : undefined;
  const own = new Set([
    ...(listened === undefined ? [] : [bare(listened)]),
    ...(publicUrl === undefined ? [] : [bare(new URL(publicUrl).hostname)]),
  ]);
  return (host) => {
    if (host === undefined) return true;
    const url = `http://${host}`;
    if (!URL.canParse(url)) return false;
    const name = bare(new URL(url).hostname);
    return isIP(name) !== 0 || name === "localhost" || name.endsWith(".localhost") || own.has(name);
  };
}

function bare(hostname: string): string {
  return hostname
    .replace(/^\[|\]$/g, "")
    .replace(/\.$/, "")
    .toLowerCase();
}

/**
 * Whether a page of this origin may change what its reader may: one of a name of this server, of another server on this machine, or of the
 * very address that the request is sent to. Anybody's page can stand under an address of its own.
 * @param origin the `Origin` header
 * @param host the `Host` header of the same request
 */
export function isOwnOrigin(origin: string, host: string | undefined, isOwnHost: (host: string) => boolean): boolean {
  if (!URL.canParse(origin)) return false;
  const { host: from, hostname } = new URL(origin);
  if (!isOwnHost(from)) return false;
  const name = bare(hostname);
  return isIP(name) === 0 || from === host || isOnThisMachine(name);
}

/** Told to whoever reads a stranger's page on this machine, as it seems. */
export function strangerText(host: string | undefined): string {
  return `this server is not known as ${String(host).slice(0, 300)}, and a web page could have let that name lead here: ask for it by its address or as localhost, or make that name its server.publicUrl`;
}
