/** The challenge of a 401: where a client gets a token, and for what. Source: distribution/distribution, docs/spec/auth/token.md; RFC 6750 §3 */
import type { IncomingMessage } from "node:http";
import { isIP } from "node:net";
import { TLSSocket } from "node:tls";
import type { RegistryError } from "../oci/errors.ts";
import { parseRoute, type Route } from "../oci/route.ts";
import type { Names } from "../registry/names.ts";
import { isForwarded } from "./client-address.ts";

export interface ChallengeFor {
  /** Scopes that the request needs, parted by spaces. */
  scope?: string | undefined;
  error?: "invalid_token" | "insufficient_scope" | undefined;
}

export interface Service {
  publicUrl: string | undefined;
  /** What this registry is called. */
  service: string;
}

/** Where the token service answers. */
export const TOKEN_PATH = "/token";

/** What a client that was answered 401 is told of where it gets a token, and for what. */
export function challengeTo(
  request: IncomingMessage,
  { detail }: RegistryError,
  names: Names,
  service: Service,
): string {
  const [path = "", query = ""] = (request.url ?? "").split("?", 2);
  const error = detail?.["error"];
  const asked = routeOf(path);
  const search = new URLSearchParams(query);
  const from = search.get("from") ?? undefined;
  return challenge(
    request,
    {
      scope:
        asked && scopeOf(asked, request.method ?? "GET", nameOf(asked, search.get("ns") ?? undefined, names), from),
      error: error === "invalid_token" || error === "insufficient_scope" ? error : undefined,
    },
    service,
  );
}

function routeOf(path: string): Route | undefined {
  try {
    return parseRoute(path);
  } catch {
    return undefined;
  }
}

/** A scope knows no `ns`: what was scoped by it has its full name. */
function nameOf(route: Route, ns: string | undefined, names: Names): string {
  if (!("name" in route)) return "";
  if (ns === undefined) return route.name;
  try {
    return names.locate(route.name, ns).repository;
  } catch {
    return route.name;
  }
}

/** The value of `WWW-Authenticate`: one scheme only, since clients break on a second one. */
export function challenge(
  request: IncomingMessage,
  { scope, error }: ChallengeFor,
  { publicUrl, service }: Service,
): string {
  const origin = publicUrl ?? originOf(request, service);
  return `Bearer ${[
    ["realm", `${origin}${TOKEN_PATH}`],
    ["service", service],
    ["scope", scope],
    ["error", error],
  ]
    .flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${quote(value)}`]))
    .join(",")}`;
}

/** Asks for a password, where a Bearer challenge would lead in a circle. */
export function basicChallenge(service: string): string {
  return `Basic realm=${quote(service)}`;
}

/**
 * The scopes that a request needs, parted by spaces.
 * @param name of the repository, in a spelling that means the same without the request's `ns`
 * @param from that of a mount
 * @returns undefined where having logged in is enough
 */
export function scopeOf(route: Route, method: string, name: string, from: string | undefined): string | undefined {
  if (route.kind === "base") return undefined;
  if (route.kind === "catalog") return "registry:catalog:*";
  const scope = `repository:${name}:${actionsOf(route, method)}`;
  return from === undefined || route.kind !== "uploads" ? scope : `${scope} repository:${from}:pull`;
}

function actionsOf(route: Route, method: string): string {
  // To ask how far an upload has come, or to give it up, is part of a push.
  if (route.kind === "uploads" || route.kind === "upload") return "pull,push";
  if (method === "GET" || method === "HEAD") return "pull";
  return method === "DELETE" ? "delete" : "pull,push";
}

/** What a Host header may say to be repeated in an answer. Names in a container network may hold underscores. */
const ADDRESS = /^(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?$/;

/** As the client reaches this server, by what it and proxies say. Not for anything but the answer to that client: anybody may say so. */
export function originOf(request: IncomingMessage, service: string): string {
  const host = [request.headers.host, service].find((text) => text !== undefined && ADDRESS.test(text)) ?? "localhost";
  return `${schemeOf(request, host)}://${host}`;
}

function schemeOf({ socket, headers }: IncomingMessage, host: string): "http" | "https" {
  if (socket instanceof TLSSocket) return "https";
  // Told to the client that the request came from, and to nobody else: so a proxy need not be trusted for it.
  const [told] = /^https?(?=\s*(?:,|$))/i.exec(String(headers["x-forwarded-proto"] ?? "")) ?? [];
  const [, forwarded] = /^[^,]*?\bproto="?(https?)\b/i.exec(headers.forwarded ?? "") ?? [];
  const scheme = (told ?? forwarded)?.toLowerCase();
  if (scheme === "http" || scheme === "https") return scheme;
  // A proxy that says nothing of it, in front of a server with a name, is nearly always there to end TLS.
  return isName(host) && isForwarded(headers) ? "https" : "http";
}

function isName(host: string): boolean {
  const name = host
    .replace(/:\d+$/, "")
    .replaceAll(/^\[|\]$/g, "")
    .toLowerCase();
  return isIP(name) === 0 && name !== "localhost" && !name.endsWith(".localhost");
}

/** A quoted string that no value gets out of. Source: RFC 9110 §5.6.4 */
function quote(value: string): string {
  return `"${value.replaceAll(/[^\x20-\x7e]/g, "").replaceAll(/["\\]/g, String.raw`\$&`)}"`;
}
