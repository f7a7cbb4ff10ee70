import type { Endpoint } from "../remote/transport.ts";

/** Where this daemon listens, and what logs its operator in. */
export interface OwnPlace {
  /** `http://127.0.0.1:5000`, `https://[::]:5000` or `unix:/path`. */
  address: string;
  publicUrl: string | undefined;
  operatorSecret: string;
}

/**
 * This daemon as a registry that it writes to itself. It goes by its public name, which its challenges and Locations bear, but connections go
 * to where it listens: the operator's secret never leaves the machine, wherever that name leads.
 * @throws Error where no registry can be asked there
 */
export function ownEndpoint({ address, publicUrl, operatorSecret }: OwnPlace): Endpoint {
  if (!/^https?:/.test(address)) {
    throw new Error(`server.listen is ${address}: a rule that copies to "self" needs host:port`);
  }
  // Its certificate names the public address.
  if (publicUrl === undefined && address.startsWith("https:")) {
    throw new Error('server.tls is set: a rule that copies to "self" needs server.publicUrl, too');
  }
  // What listens on all addresses is reached at this one.
  const dial = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:").replace(/\/+$/, "");
  return {
    url: publicUrl ?? dial,
    dial,
    auth: { username: "operator", password: operatorSecret },
    realms: [],
    trustedHosts: [],
    allowPrivate: true,
    connections: 16,
    requests: 0,
    timeouts: { connect: 5000, firstByte: 60_000, progress: 20_000 },
  };
}
