import PQueue from "p-queue";
import { systemClock } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { EndpointConfig } from "../config/schema.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import { createRemote, type Remote } from "../remote/remote.ts";
import { createTarget, type Target } from "../remote/target.ts";
import { SparingRemote } from "./sparing-remote.ts";

/** A registry as a plan asks it. */
export interface PlanRegistry extends AsyncDisposable {
  /** As rules call it. */
  readonly name: string;
  readonly remote: Remote;
  /** The same, to write to; undefined where nothing is to be written. */
  readonly target: Target | undefined;
  /** Of one whose content is kept once it was read: whether a blob is here by now. */
  readonly keeps?: (repository: RepositoryName, digest: Digest) => Promise<boolean>;
  /** Requests wait here, as many at a time as the configuration says. */
  readonly queue: PQueue;
  /** Pulls of its rate limit that are left to others. */
  readonly keep: number;
  /** How many requests were sent so far, those for tokens, repetitions and redirects included. */
  readonly requests: number;
}

/** One of those that a rule names. @throws TypeError where it was not opened */
export function opened<T>(registries: ReadonlyMap<string, T>, name: string): T {
  const registry = registries.get(name);
  if (!registry) throw new TypeError(`registry ${name} was not opened`);
  return registry;
}

/** One that is written to. */
export type TargetRegistry = PlanRegistry & { readonly target: Target };

/** @throws TypeError where it was opened to be read alone */
export function writable(registry: PlanRegistry): TargetRegistry {
  if (registry.target) return registry as TargetRegistry;
  throw new TypeError(`registry ${registry.name} was not opened to be written to`);
}

/**
 * Sends nothing yet.
 * @param access what is asked for: credentials that may only read do for a plan
 * @throws RemoteError unreachable for unreadable TLS files
 */
export async function openRegistry(
  name: string,
  endpoint: EndpointConfig,
  options: { keep: number; log: Logger; access: "read" | "write" },
): Promise<PlanRegistry> {
  const { keep, log, access } = options;
  let requests = 0;
  const observe = { request: () => void requests++, received: () => undefined };
  const dependencies = { clock: systemClock, log, observe };
  const target = access === "write" ? await createTarget(endpoint, dependencies) : undefined;
  const remote = target ?? (await createRemote(endpoint, dependencies));
  const spent = (message: string): Error => new Error(`${message}: try again later, or lower it`);
  return {
    name,
    remote: new SparingRemote(remote, { name, keep, clock: systemClock, spent }),
    target,
    queue: new PQueue({ concurrency: endpoint.connections }),
    keep,
    get requests() {
      return requests;
    },
    [Symbol.asyncDispose]: () => remote[Symbol.asyncDispose](),
  };
}
