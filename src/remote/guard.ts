/**
 * Where Entrepot may connect to on behalf of a registry. Redirects, token realms and DNS are the registry's word, so every hop is
 * checked: a literal address in its URL before the request, the addresses that a name resolves to within the connect itself, so
 * that the address checked is the address dialled.
 */
import { lookup as resolve } from "node:dns";
import { BlockList, isIP, type LookupFunction } from "node:net";
import picomatch from "picomatch";
import { getDomain, parse } from "tldts";
import type { EndpointConfig } from "../config/schema.ts";
import { RemoteError } from "./remote-error.ts";

/** metadata: the addresses where clouds hand out credentials; private: everything else that is not globally reachable unicast. */
export type Reach = "public" | "private" | "metadata";

// Source: IANA IPv4 Special-Purpose Address Registry, and multicast and reserved space.
const PRIVATE_V4 = new BlockList();
for (const [network, bits] of [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.0.2.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["198.51.100.0", 24],
  ["203.0.113.0", 24],
  ["224.0.0.0", 3],
] as const) {
  PRIVATE_V4.addSubnet(network, bits, "ipv4");
}
const METADATA_V4 = "169.254.169.254";
const METADATA_V6 = "fd00:ec2::254";

/** @param address an IPv4 or IPv6 address without brackets; IPv4 within IPv6 (mapped, compatible, NAT64, 6to4) counts as what it holds */
export function reachOf(address: string): Reach {
  if (isIP(address) === 4) {
    if (address === METADATA_V4) return "metadata";
    return PRIVATE_V4.check(address, "ipv4") ? "private" : "public";
  }
  const canonical = canonicalV6(address);
  if (canonical === METADATA_V6) return "metadata";
  const groups = groupsOf(canonical);
  const embedded = embeddedV4(groups);
  if (embedded !== undefined) return reachOf(embedded);
  const [first = 0, second = 0] = groups;
  // Global unicast is 2000::/3, without IETF's own (2001::/23, Teredo within) and documentation.
  const global = first >= 0x2000 && first <= 0x3fff;
  const special = (first === 0x2001 && (second < 0x200 || second === 0xdb8)) || (first === 0x3fff && second < 0x1000);
  return global && !special ? "public" : "private";
}

function canonicalV6(address: string): string {
  const [unscoped = ""] = address.split("%", 1);
  return new URL(`http://[${unscoped}]`).hostname.slice(1, -1);
}

function groupsOf(canonical: string): number[] {
  const [left = [], right = []] = canonical.split("::").map((part) => (part === "" ? [] : part.split(":")));
  const zeros = Array.from({ length: 8 - left.length - right.length }, () => "0");
  return [...left, ...zeros, ...right].map((group) => Number.parseInt(group, 16));
}

function embeddedV4(groups: number[]): string | undefined {
  const dotted = (high = 0, low = 0): string => `${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`;
  const zero = (from: number, to: number): boolean => groups.slice(from, to).every((group) => group === 0);
  if (zero(0, 5) && (groups[5] === 0xffff || groups[5] === 0)) return dotted(groups[6], groups[7]);
  if (groups[0] === 0x64 && groups[1] === 0xff9b && zero(2, 6)) return dotted(groups[6], groups[7]);
  if (groups[0] === 0x2002) return dotted(groups[1], groups[2]);
  return undefined;
}

/**
 * Whether a registry's token realm may be asked, and be given the registry's credentials: over https (http where the registry itself
 * speaks it), and on the registry's own host, or under the same registrable domain, or listed.
 * @param listed hosts or host:port
 */
export function acceptsRealm(endpoint: URL, realm: URL, listed: readonly string[]): boolean {
  if (realm.protocol !== "https:" && (realm.protocol !== "http:" || endpoint.protocol !== "http:")) return false;
  if (realm.host === endpoint.host || listed.some((entry) => isListed(entry, realm))) return true;
  const domain = registrableDomain(endpoint);
  return domain !== null && domain === registrableDomain(realm);
}

function isListed(entry: string, url: URL): boolean {
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  return entry === url.host || entry === `${url.hostname}:${port}`;
}

function registrableDomain(url: URL): string | null {
  // Private suffixes count: two tenants of github.io are strangers.
  return getDomain(url.hostname, { allowPrivateDomains: true });
}

/** The host of a URL as DNS and `net` know it. */
function bareHost(hostname: string): string {
  return hostname
    .replace(/^\[|\]$/g, "")
    .replace(/\.$/, "")
    .toLowerCase();
}

function isLocalhost(host: string): boolean {
  return host === "localhost" || host.endsWith(".localhost");
}

/** Decides for one configured registry. */
export class Guard {
  readonly #endpoint: URL;
  readonly #host: string;
  readonly #realms: readonly string[];
  readonly #realmHosts: ReadonlySet<string>;
  readonly #allowPrivate: boolean;
  readonly #neverMetadata: boolean;
  readonly #isTrusted: (host: string) => boolean;

  /** @param config neverMetadata: the metadata service is refused even where it is the configured address itself */
  constructor(
    config: Pick<EndpointConfig, "url" | "realms" | "trustedHosts" | "allowPrivate"> & { neverMetadata?: boolean },
  ) {
    this.#endpoint = new URL(config.url);
    this.#host = bareHost(this.#endpoint.hostname);
    this.#realms = config.realms;
    this.#realmHosts = new Set(config.realms.map((realm) => bareHost(new URL(`http://${realm}`).hostname)));
    this.#allowPrivate = config.allowPrivate;
    this.#neverMetadata = config.neverMetadata ?? false;
    this.#isTrusted =
      config.trustedHosts.length === 0 ? () => false : picomatch([...config.trustedHosts], { dot: true, nocase: true });
  }

  /** @throws RemoteError refused */
  checkRealm(realm: URL): void {
    if (acceptsRealm(this.#endpoint, realm, this.#realms)) return;
    const remedy =
      realm.protocol !== "https:" && this.#endpoint.protocol === "https:"
        ? "tokens are asked for over https only"
        : `if that is right, add "${realm.host}" to realms`;
    throw new RemoteError(
      "refused",
      this.#endpoint.host,
      `names ${realm.host} as its token realm, which is neither its own domain nor listed: ${remedy}`,
    );
  }

  /**
   * Checks what no lookup will: a literal address, and names that mean this machine.
   * @throws RemoteError refused
   */
  checkUrl(url: URL): void {
    const host = bareHost(url.hostname);
    if (isIP(host) !== 0) this.#check(host, host);
    else if (isLocalhost(host)) this.#check(host, "127.0.0.1");
  }

  /** For `net.connect`: resolves a name, and fails with RemoteError refused if any of its addresses is out of bounds. */
  readonly lookup: LookupFunction = (hostname, options, callback) => {
    resolve(hostname, { ...options, all: true }, (error, addresses) => {
      if (error) {
        callback(error, []);
        return;
      }
      try {
        for (const { address } of addresses) this.#check(bareHost(hostname), address);
      } catch (refusal) {
        callback(refusal as Error, []);
        return;
      }
      const [first] = addresses;
      if (options.all || first === undefined) callback(null, addresses);
      else callback(null, first.address, first.family);
    });
  };

  #check(host: string, address: string): void {
    const reach = reachOf(address);
    if (reach === "public") return;
    const own = host === this.#host;
    if (reach === "metadata") {
      if (own && isIP(host) !== 0 && !this.#neverMetadata) return;
      throw new RemoteError("refused", host, `is the metadata service ${address}, which is never asked`);
    }
    if (this.#mayBePrivate(host, own)) return;
    const remedy = own ? "set allowPrivate" : `add "${host}" to trustedHosts`;
    throw new RemoteError("refused", host, `is at the private address ${address}: if that is intended, ${remedy}`);
  }

  #mayBePrivate(host: string, own: boolean): boolean {
    if (this.#isTrusted(host)) return true;
    if (own && this.#allowPrivate) return true;
    // A configured name that public DNS cannot hold is an inside one.
    const configured = own || this.#realmHosts.has(host);
    return configured && (isIP(host) !== 0 || isLocalhost(host) || parse(host).isIcann !== true);
  }
}
