import type { IncomingMessage, ServerResponse } from "node:http";
import { TLSSocket } from "node:tls";
import type { Config } from "../config/schema.ts";
import { certificateNameOf } from "./tls.ts";

/** Of every answer. A page that needs more adds it. */
export const CONTENT_SECURITY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/**
 * What every answer says, unless its route says otherwise: to take its content for nothing but what it is called, to run nothing in it, to show
 * it in no other page, to keep no copy, and to tell no other site where it was read.
 */
const EVERYWHERE: readonly (readonly [name: string, value: string])[] = [
  ["x-content-type-options", "nosniff"],
  ["referrer-policy", "no-referrer"],
  ["x-frame-options", "DENY"],
  ["content-security-policy", CONTENT_SECURITY],
  ["cache-control", "no-store"],
];

const YEAR_SECONDS = 31_536_000;

/**
 * Sets them on an answer that has not begun. HSTS goes out only where it is meant: over TLS of this server's own, which `server.publicUrl`
 * names as https at the standard port. For it binds a name with all its ports, and other services may share that name.
 * Source: RFC 6797 §8.3
 */
export function secureHeaders(publicUrl: Config["server"]["publicUrl"]): (response: ServerResponse) => void {
  const url = publicUrl === undefined ? undefined : new URL(publicUrl);
  const isMeant = url?.protocol === "https:" && url.port === "";
  return (response) => {
    for (const [name, value] of EVERYWHERE) response.setHeader(name, value);
    if (isMeant && response.socket instanceof TLSSocket) {
      response.setHeader("strict-transport-security", `max-age=${YEAR_SECONDS}`);
    }
  };
}

/**
 * How long what a digest names may be kept: for ever, but by caches that others share only if it was given to somebody who said nothing
 * of who it is. A proxy's cache does not look at Authorization of its own accord.
 */
export function immutable(request: IncomingMessage): { "cache-control": string } {
  const isAnybodys = request.headers.authorization === undefined && certificateNameOf(request) === undefined;
  return { "cache-control": `${isAnybodys ? "" : "private, "}max-age=${YEAR_SECONDS}, immutable` };
}
