import type { EndpointConfig } from "../config/schema.ts";

/** Where this daemon listens, and what logs its operator in. */
export interface OwnPlace {
  /** `http://127.0.0.1:5000`, `https://[::]:5000` or `unix:/path`. */
  address: string;
  publicUrl: string | undefined;
  operatorSecret: string;
}

/** This daemon as a registry that it writes to itself. @throws Error where no registry can be asked there */
export function ownEndpoint({ address, publicUrl, operatorSecret }: OwnPlace): EndpointConfig {
  if (!/^https?:/.test(address)) {
    throw new Error(`server.listen is ${address}: a rule that copies to "self" needs host:port`);
  }
  // Its certificate names the public address.
  const url = address.startsWith("https:") ? publicUrl : address;
  if (url === undefined) {
    throw new Error('server.tls is set: a rule that copies to "self" needs server.publicUrl, too');
  }
  return {
    // What listens on all addresses is reached at this one.
    url: url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:").replace(/\/+$/, ""),
    auth: { username: "operator", password: operatorSecret },
    realms: [],
    trustedHosts: [],
    allowPrivate: true,
    connections: 16,
    requests: 0,
    timeouts: { connect: 5000, firstByte: 60_000, progress: 20_000 },
  };
}
