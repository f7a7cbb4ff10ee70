import { Agent, ProxyAgent, request, type Dispatcher } from "undici";
import { systemClock, type Milliseconds } from "../../base/clock.ts";
import type { Logger } from "../../base/log.ts";
import type { Config, EndpointConfig, UpstreamConfig } from "../../config/schema.ts";
import { RemoteError, type RemoteFault } from "../../remote/remote-error.ts";
import { createRemote, type Remote } from "../../remote/remote.ts";
import { readTlsContexts } from "../../remote/transport.ts";
import { timeText } from "../format.ts";
import { fault, ok, warning, type Finding } from "./finding.ts";

/** What was learnt of one address of an upstream. */
export interface UpstreamReport {
  finding: Finding;
  /** How far ahead of ours its clock is; undefined where it did not tell. */
  skewMs: Milliseconds | undefined;
}

/** Every address of every upstream, the fallbacks included, each with its own check. */
export function checkUpstreams(upstreams: Config["upstreams"], log: Logger): Promise<UpstreamReport>[] {
  return Object.entries(upstreams).flatMap(([name, upstream]) => [
    checkEndpoint(`upstream ${name}`, upstream, name === "docker.io" ? upstream : undefined, log),
    ...upstream.fallbacks.map((fallback) =>
      checkEndpoint(`upstream ${name}, fallback ${new URL(fallback.url).host}`, fallback, undefined, log),
    ),
  ]);
}

/** One try is what tells how things are. */
const ONE_TRY = { attempts: 1, baseMs: 0, maxMs: 0 };

/** @param hub the policy of Docker Hub, whose rate limit is told with a manifest's head, which counts for nothing */
async function checkEndpoint(
  check: string,
  endpoint: EndpointConfig,
  hub: UpstreamConfig | undefined,
  log: Logger,
): Promise<UpstreamReport> {
  const host = new URL(endpoint.url).host;
  const via = endpoint.proxy === undefined ? "" : ` through the proxy ${new URL(endpoint.proxy).host}`;
  let skewMs: Milliseconds | undefined;
  try {
    skewMs = await readSkew(endpoint);
  } catch (error) {
    return { finding: unreachable(check, endpoint, error), skewMs };
  }
  try {
    await using remote = await createRemote(endpoint, {
      clock: systemClock,
      log,
      observe: { request: () => undefined, received: () => undefined },
      policy: ONE_TRY,
    });
    const startedMs = performance.now();
    await remote.ping();
    const took = timeText(performance.now() - startedMs);
    const login = endpoint.auth === undefined ? "without credentials" : "and takes the credentials";
    const finding = ok(check, `${host} answers${via} ${login}, in ${took}`);
    return { finding: hub === undefined ? finding : await withRateLimit(finding, remote, hub), skewMs };
  } catch (error) {
    if (!(error instanceof RemoteError)) throw error;
    return { finding: fault(check, error.message, REMEDIES[error.fault] ?? "ask those who run it"), skewMs };
  }
}

const REMEDIES: Partial<Record<RemoteFault, string>> = {
  unreachable: "check its url, the network and the proxy",
  timeout: "check the network, or raise its timeouts",
  unauthorized: "check its auth: user name, and password or access token",
  denied: "check what its credentials may see",
  protocol: "check its url: a registry answers under /v2/",
  rateLimited: "wait, or configure credentials with a higher limit",
  refused: "Entrepot itself does not go there: allow it if it is right",
};

async function withRateLimit(
  finding: Finding,
  remote: Remote,
  { rateLimit: { keep } }: UpstreamConfig,
): Promise<Finding> {
  // Without the limit's numbers, the registry still works: that was the check.
  await remote.headManifest("library/alpine", "latest").catch(() => undefined);
  const told = remote.state.rateLimit;
  if (!told) return finding;
  const window = told.windowSeconds === undefined ? "" : ` in ${Math.round(told.windowSeconds / 360) / 10} h`;
  const cause = `${finding.cause}; ${told.remaining} of ${told.limit} pulls${window} are left`;
  if (told.remaining > keep) return { ...finding, cause };
  return warning(
    finding.check,
    cause,
    "tags are served from the cache until it recovers; credentials in auth raise the limit",
  );
}

/**
 * Asks for `/v2/` without credentials, to learn whether there is a way at all.
 * @returns undefined where the answer has no date
 */
async function readSkew(endpoint: EndpointConfig): Promise<Milliseconds | undefined> {
  const dispatcher = await createDispatcher(endpoint);
  try {
    const startedMs = Date.now();
    const { headers, body } = await request(`${endpoint.url}/v2/`, {
      dispatcher,
      headersTimeout: endpoint.timeouts.firstByte,
    });
    const answeredMs = Date.now();
    body.once("error", () => undefined);
    body.destroy();
    const date = Date.parse(String(headers["date"]));
    // It has whole seconds, cut off.
    return Number.isNaN(date) ? undefined : date + 500 - (startedMs + answeredMs) / 2;
  } finally {
    await dispatcher.destroy();
  }
}

async function createDispatcher(endpoint: EndpointConfig): Promise<Dispatcher> {
  const { own: secureContext } = await readTlsContexts(endpoint);
  const timeout = endpoint.timeouts.connect;
  const tls = { timeout, ...(secureContext ? { secureContext } : {}) };
  if (endpoint.proxy === undefined) return new Agent({ connect: tls });
  return new ProxyAgent({ uri: endpoint.proxy, requestTls: tls, proxyTls: { timeout } });
}

/** Which step failed, and what helps there. */
function unreachable(check: string, endpoint: EndpointConfig, error: unknown): Finding {
  const { host } = new URL(endpoint.url);
  const causes = causesOf(error);
  const code = causes.map((cause) => (cause as NodeJS.ErrnoException).code ?? "").find((text) => text !== "") ?? "";
  const why = causes.map(({ message }) => message).find((message) => message !== "") ?? code;
  if (/^(?:CERT_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH|ERR_TLS_)/.test(code)) {
    const remedy = TLS_REMEDIES[code] ?? "name the authority that signed its certificate under tls.ca";
    return fault(check, `TLS: ${host} can't be trusted (${why})`, remedy);
  }
  if (/^(?:EPROTO|ERR_SSL_)/.test(code)) {
    return fault(check, `TLS: ${host} does not speak it (${code})`, "check whether its url is http or https");
  }
  // Names are the proxy's to resolve, so what fails here is the way to the proxy itself.
  const next = endpoint.proxy === undefined ? host : `the proxy ${new URL(endpoint.proxy).host}`;
  if (/^(?:ENOTFOUND|EAI_)/.test(code)) {
    return fault(check, `DNS: ${next} has no address (${code})`, "check its url and this machine's name server");
  }
  if (/^(?:ECONNREFUSED|E(?:HOST|NET)UNREACH|ETIMEDOUT|UND_ERR_CONNECT_TIMEOUT)$/.test(code)) {
    return fault(check, `TCP: ${next} can't be reached (${code})`, "check its url, the network and firewalls");
  }
  const remedy = "check its url; where there is a proxy, its credentials; else raise timeouts.firstByte";
  return fault(check, `HTTP: ${next} does not answer (${why})`, remedy);
}

const TLS_REMEDIES: Record<string, string> = {
  CERT_HAS_EXPIRED: "check this machine's clock, or have the certificate renewed",
  CERT_NOT_YET_VALID: "check this machine's clock",
  ERR_TLS_CERT_ALTNAME_INVALID: "check its url: the certificate is for another name",
};

function causesOf(error: unknown): Error[] {
  if (!(error instanceof Error)) return [];
  const attempts: unknown[] = error instanceof AggregateError ? error.errors : [];
  return [error, ...[...attempts, error.cause].flatMap(causesOf)];
}

const MOST_SKEW_MS = 60_000;

/** Compares this machine's clock with that of the upstreams: tokens and certificates are valid for a time. */
export function checkClock(skewsMs: readonly Milliseconds[]): Finding {
  const sorted = [...skewsMs].sort((a, b) => a - b);
  const skewMs = sorted[Math.floor(sorted.length / 2)];
  if (skewMs === undefined) {
    return warning(
      "clock",
      "could not be compared: no upstream told the time",
      "make one reachable, or check the clock by hand",
    );
  }
  if (Math.abs(skewMs) <= MOST_SKEW_MS) return ok("clock", "agrees with that of the upstreams");
  return fault(
    "clock",
    `is ${timeText(Math.abs(skewMs))} ${skewMs > 0 ? "behind" : "ahead of"} that of the upstreams`,
    "set it, and let NTP keep it: certificates and tokens are refused when it is wrong",
  );
}
