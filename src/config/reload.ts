import { pathText, type Path } from "./faults.ts";
import { isMapping, type Config, type UpstreamConfig } from "./schema.ts";

/** What a daemon does with a changed configuration. Keys are paths such as `upstreams.docker.io.tagTtl`. */
export interface Reload {
  /** The running configuration, with what can change while it runs. */
  config: Config;
  /** What changes at once. */
  changed: string[];
  /** What differs and stays as it was until a restart. */
  needRestart: string[];
}

/** Takes over what can change in a running daemon: how much is logged, limits of space and time, the policy of known upstreams and of what is hosted. */
export function planReload(running: Config, next: Config): Reload {
  const upstreams = Object.entries(running.upstreams).map(([name, upstream]): [string, UpstreamConfig] => {
    const policy = next.upstreams[name] && policyOf(next.upstreams[name]);
    return [name, { ...upstream, ...policy }];
  });
  const config: Config = {
    ...running,
    server: { ...running.server, drainTimeout: next.server.drainTimeout },
    log: { ...running.log, level: next.log.level, requests: next.log.requests },
    storage: { ...running.storage, cacheMaxSize: next.storage.cacheMaxSize, minFree: next.storage.minFree },
    upstreams: Object.fromEntries(upstreams),
    hosted: { ...next.hosted, namespaces: running.hosted.namespaces },
    gc: next.gc,
    scrub: next.scrub,
    access: {
      ...next.access,
      htpasswd: running.access.htpasswd,
      // The tokens that are out name it.
      tokens: { ...next.access.tokens, service: running.access.tokens.service },
    },
    events: next.events,
    retention: next.retention,
    replication: next.replication,
  };
  return { config, changed: differences(running, config), needRestart: differences(config, next) };
}

/** What is read anew for every request, unlike connections and names. */
function policyOf(upstream: UpstreamConfig) {
  const { allow, deny, visibility, tagTtl, maxStale, notFoundTtl, listTtl, whenGone, prefetch, ranges, rateLimit } =
    upstream;
  return { allow, deny, visibility, tagTtl, maxStale, notFoundTtl, listTtl, whenGone, prefetch, ranges, rateLimit };
}

function differences(a: unknown, b: unknown, path: Path = []): string[] {
  if (isMapping(a) && isMapping(b)) {
    const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
    return [...keys].flatMap((key) => differences(a[key], b[key], [...path, key]));
  }
  return JSON.stringify(a) === JSON.stringify(b) ? [] : [pathText(path)];
}
