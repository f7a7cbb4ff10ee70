import { isIP } from "node:net";
import { parseListen, type Config } from "../config/schema.ts";

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
