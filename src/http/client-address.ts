import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { BlockList, isIP, isIPv6 } from "node:net";

/**
 * Tells a client's address: the socket's, or, where that is a trusted proxy's, the nearest address in X-Forwarded-For that is not.
 * @param trustedProxies addresses and CIDR ranges, checked by the configuration
 */
export function clientAddressReader(trustedProxies: readonly string[]): (request: IncomingMessage) => string {
  if (trustedProxies.length === 0) return (request) => plain(request.socket.remoteAddress);
  const trusted = new BlockList();
  for (const entry of trustedProxies) {
    const [address = "", bits] = entry.split("/");
    const family = isIPv6(address) ? "ipv6" : "ipv4";
    if (bits === undefined) trusted.addAddress(address, family);
    else trusted.addSubnet(address, Number(bits), family);
  }
  const isTrusted = (address: string): boolean =>
    isIP(address) !== 0 && trusted.check(address, isIPv6(address) ? "ipv6" : "ipv4");
  return (request) => {
    let address = plain(request.socket.remoteAddress);
    const hops = String(request.headers["x-forwarded-for"] ?? "").split(",");
    while (isTrusted(address) && hops.length > 0) {
      const hop = (hops.pop() ?? "").trim();
      if (isIP(hop) === 0) break;
      address = hop;
    }
    return address;
  };
}

/** What proxies add to a request; one is misspelt in a configuration that went around. */
const TRACES = ["x-forwarded-for", "x-forward-for", "x-real-ip", "via", "forwarded"];

/** Whether a proxy says that it has passed the request on: whoever it speaks for may be anywhere. */
export function isForwarded(headers: IncomingHttpHeaders): boolean {
  return TRACES.some((name) => headers[name] !== undefined);
}

function plain(address: string | undefined): string {
  return (address ?? "").replace(/^::ffff:/, "");
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

/** Whether a client's address is this machine's own; that of a client through a Unix socket is empty. */
export function isOnThisMachine(address: string): boolean {
  return address === "" || LOOPBACK.check(address, isIPv6(address) ? "ipv6" : "ipv4");
}
