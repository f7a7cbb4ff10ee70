/** What a person types as one end of a copy: which registry it is, how it is reached, and what is meant in it. */
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { parseConfig } from "../config/load.ts";
import type { Config, EndpointConfig } from "../config/schema.ts";
import { isRepositoryName, parseImageReference, type Reference, type RepositoryName } from "../oci/reference.ts";
import { UsageError } from "./io.ts";

/** An image or a repository of a registry. */
export interface CopyPlace {
  endpoint: EndpointConfig;
  /** As the person calls the registry. */
  host: string;
  repository: RepositoryName;
  reference: Reference;
  /** Whether a tag or a digest was written: else the reference is `latest`. */
  named: boolean;
}

const HUB_HOSTS: ReadonlySet<string> = new Set(["docker.io", "index.docker.io", "registry-1.docker.io"]);

/**
 * Reads `HOST/REPOSITORY[:TAG][@DIGEST]`, or a name of `replication.registries` in place of the host. Credentials are those of the
 * registry or upstream that the configuration has under that name, else docker's.
 * @throws UsageError; RegistryError for what is no name
 */
export function readPlace(text: string, config: Config, env: NodeJS.ProcessEnv, plainHttp: boolean): CopyPlace {
  const { host, repository, reference } = parseImageReference(text);
  const named = text.includes("@") || text.lastIndexOf(":") > text.lastIndexOf("/");
  const [first = "", ...rest] = host === undefined ? repository.split("/") : [host, repository];
  const { registries } = config.replication;
  const registry = Object.hasOwn(registries, first) ? registries[first] : undefined;
  const path = rest.join("/");
  if (registry) {
    if (!isRepositoryName(path)) throw new UsageError(`${text} names no repository: write ${first}/REPOSITORY`);
    const { concurrency, ...endpoint } = registry;
    return { endpoint: { ...endpoint, connections: concurrency }, host: first, repository: path, reference, named };
  }
  if (host === undefined) {
    throw new UsageError(`${text} names no registry: write its host in front, as in docker.io/library/alpine:3.20`);
  }
  const endpoint = endpointOf(host, config, env, plainHttp);
  const short = HUB_HOSTS.has(host) && !repository.includes("/");
  return {
    endpoint,
    host,
    repository: short ? (`library/${repository}` as RepositoryName) : repository,
    reference,
    named,
  };
}

function endpointOf(host: string, config: Config, env: NodeJS.ProcessEnv, plainHttp: boolean): EndpointConfig {
  const configured = Object.entries(config.upstreams).find(
    ([name, { aliases, url }]) => name === host || aliases.includes(host) || new URL(url).host === host,
  )?.[1];
  const file = join(env["DOCKER_CONFIG"] ?? join(env["HOME"] ?? homedir(), ".docker"), "config.json");
  const auth = existsSync(file) ? { dockerConfig: file } : undefined;
  if (configured) return { ...configured, ...(configured.auth === undefined && auth ? { auth } : {}) };
  const name = HUB_HOSTS.has(host) ? "registry-1.docker.io" : host;
  const url = `${plainHttp || isLoopback(host) ? "http" : "https"}://${name}`;
  // Who types a host means it, wherever it is.
  const upstream = parseConfig({ upstreams: { named: { url, allowPrivate: true, ...(auth ? { auth } : {}) } } })
    .upstreams["named"];
  if (!upstream) throw new UsageError(`${host} is no host of a registry`);
  return upstream;
}

/** Hosts that docker, too, speaks plain http to. */
function isLoopback(host: string): boolean {
  return /^(?:localhost|127\.[0-9.]+)(?::[0-9]+)?$/.test(host);
}
