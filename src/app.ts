import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { resolve } from "node:path";
import { systemClock, type Clock } from "./base/clock.ts";
import type { Logger } from "./base/log.ts";
import { Metrics } from "./base/metrics.ts";
import { VERSION } from "./base/version.ts";
import type { LoadedConfig } from "./config/load.ts";
import { planReload, type Reload } from "./config/reload.ts";
import type { Config } from "./config/schema.ts";
import { createRules } from "./access/create-rules.ts";
import { Journal } from "./events/journal.ts";
import { Webhooks } from "./events/webhooks.ts";
import type { Check } from "./http/check.ts";
import { ServedCertificate } from "./http/tls.ts";
import { registerForgetting } from "./jobs/forget.ts";
import type { Digest } from "./oci/digest.ts";
import { HostedRepositories } from "./registry/hosted.ts";
import { Gate } from "./registry/gate.ts";
import { Mirror } from "./registry/mirror.ts";
import { Names } from "./registry/names.ts";
import { Quotas } from "./registry/quota.ts";
import { Registry } from "./registry/registry.ts";
import { StoredBlobs } from "./registry/stored-blobs.ts";
import { Upstream } from "./registry/upstream.ts";
import { Warming } from "./registry/warm.ts";
import { createRemote, type Remote } from "./remote/remote.ts";
import { Catalog } from "./store/catalog.ts";
import { HostedCatalog } from "./store/hosted-catalog.ts";
import { MemoryCache } from "./store/memory.ts";
import { Namespaces } from "./store/namespaces.ts";
import { Uploads } from "./store/uploads.ts";
import { Usage } from "./store/usage.ts";
import { Downloads } from "./transfer/download.ts";
import { Evictor } from "./upkeep/evict.ts";
import { recover } from "./upkeep/recover.ts";
import { makeServer } from "./app-http.ts";
import {
  openAccess,
  openReplication,
  makeJobs,
  makeUpkeep,
  makeImports,
  openStorage,
  repairFrom,
  upstreamObserver,
  exposeState,
  check,
} from "./app-parts.ts";

/** A running daemon. Disposing of it drains requests, keeps partial downloads and closes everything, in the reverse order of its making. */
export interface App extends AsyncDisposable {
  /** Where it listens: `http://127.0.0.1:5000` or `unix:/path`. */
  readonly address: string;
  /** The pressure gauges of the moment. */
  readonly metrics: Metrics;
  /** Takes over from another configuration what can change without a restart. What is under way ends as it began. */
  reload(next: Config, origins?: LoadedConfig["origins"]): Omit<Reload, "config">;
}

export interface AppOptions {
  log: Logger;
  clock?: Clock;
  /** Where the values of the configuration come from: told to whoever asks for it. */
  origins?: LoadedConfig["origins"];
  /** Whether it does what is queued, due, or left to be tidied up; default: true. Else only what it is asked for. */
  ownWork?: boolean;
}

const DAY_MS = 86_400_000;

/**
 * Constructs the daemon and starts it. Dials nothing: an upstream that is away does not keep it from starting.
 * @throws Error naming cause and remedy: storage not writable or in use, address taken
 */
export async function open(config: Config, options: AppOptions): Promise<App> {
  const { log, clock = systemClock, ownWork = true } = options;
  await using stack = new AsyncDisposableStack();
  // What can be reloaded is read from here whenever it is needed.
  let running = config;
  let origins = options.origins ?? new Map<string, string>();
  const startedAtMs = clock.now();
  const metrics = new Metrics();
  metrics.buildInfo.set({ version: VERSION, node: process.version }, 1);
  const onFault = (operation: string, error: unknown): void => {
    metrics.cacheErrors.inc({ operation });
    log.warn({ operation, err: error }, "the cache failed, the pull goes on");
  };

  const certificate =
    config.server.tls && stack.use(await ServedCertificate.open(config.server.tls, { clock, log, metrics }));
  const root = resolve(config.storage.root);
  const { db, blobs } = await openStorage(root, stack);
  const catalog = new Catalog(db);
  const memory = new MemoryCache(config.storage.memoryCache);
  const usage = stack.use(new Usage(catalog, clock, onFault));
  const journal = stack.use(new Journal({ db, clock, config: () => running.events, log, metrics, onFault }));
  const hostedCatalog = new HostedCatalog(db, catalog);
  const jobs = makeJobs({ db, clock, log, metrics });
  registerForgetting({ ...jobs, clock });
  const webhooks = stack.use(
    new Webhooks({
      ...jobs,
      db,
      journal,
      clock,
      log,
      metrics,
      config: config.webhooks,
      origin: { publicUrl: config.server.publicUrl, hostname: hostname(), instanceId: randomUUID() },
      onFault,
    }),
  );

  const upstreams = new Map<string, Upstream>();
  for (const [name, upstream] of Object.entries(config.upstreams)) {
    const observe = upstreamObserver(metrics, name);
    const own = stack.use(await createRemote(upstream, { clock, log, observe }));
    const remotes: [Remote, ...Remote[]] = [own];
    for (const fallback of upstream.fallbacks)
      remotes.push(stack.use(await createRemote(fallback, { clock, log, observe })));
    upstreams.set(name, new Upstream(name, upstream, remotes));
  }

  const inFlight = (): ReadonlySet<Digest> => new Set(downloads.progress.map(({ digest }) => digest));
  const evictor = new Evictor({
    get limits() {
      return running.storage;
    },
    catalog,
    blobs,
    memory,
    usage,
    log,
    metrics,
    inFlight,
  });
  await evictor.start();
  const downloads: Downloads = stack.use(
    new Downloads({
      store: blobs,
      space: evictor,
      clock,
      onFault,
      onMismatch: (upstream, digest) => {
        metrics.digestMismatches.inc({ upstream });
        log.error({ upstream, digest }, "upstream sent bytes that are not what their digest says");
      },
    }),
  );

  const names = new Names(config);
  for (const namespace of await hostedCatalog.namespaces()) names.host(namespace);
  const access = await openAccess({ config: () => running, root, db, clock, journal, log, metrics, ownWork, stack });
  const { spaces, accounts } = access;
  const host = async (namespace: string): Promise<void> => {
    names.host(namespace);
    await spaces.hosted(namespace);
  };
  const gate = new Gate({ names, spaces, create: () => createRules(running) });
  const stored = new StoredBlobs({ catalog, blobs, memory, clock, ledger: evictor, onFault });
  const mirror = stack.use(
    new Mirror({
      upstreams,
      names,
      catalog,
      blobs,
      stored,
      memory,
      usage,
      downloads,
      clock,
      log,
      metrics,
      ledger: evictor,
      onFault,
    }),
  );
  // What is still being asked of an upstream must not keep the daemon from stopping: flights keep their files, then connections are cut.
  stack.defer(async () => {
    await downloads[Symbol.asyncDispose]();
    const remotes = [...upstreams.values()].flatMap((upstream) => upstream.remotes);
    await Promise.all(remotes.map((remote) => remote[Symbol.asyncDispose]()));
  });
  const uploads = stack.use(
    new Uploads({
      db,
      blobs,
      clock,
      room: { reserve: (bytes) => evictor.reserveForUpload(bytes) },
      lifeMs: () => running.hosted.uploadLife,
      log,
    }),
  );
  const namespaces = new Namespaces(db);
  const quotas = new Quotas({ rules: () => running.hosted.quotas, namespaces, clock, log });
  const hosted = new HostedRepositories({
    config: () => running.hosted,
    host,
    catalog,
    hosted: hostedCatalog,
    blobs,
    stored,
    uploads,
    quotas,
    memory,
    usage,
    journal,
    clock,
    isOpen: (repository) => {
      const cached = names.stored(repository);
      return cached !== undefined && upstreams.get(cached.upstream)?.allows(cached.remoteName) === true;
    },
    ledger: evictor,
    onFault,
  });
  const registry = new Registry(names, mirror, hosted, journal);
  const warming = new Warming({ mirror, names, clock, progress: () => downloads.progress });
  const upkeep = makeUpkeep({
    ...jobs,
    config: () => running,
    db,
    catalog,
    blobs,
    memory,
    usage,
    clock,
    journal,
    ledger: evictor,
    inFlight,
    repair: repairFrom(mirror, names),
    log,
    metrics,
  });
  let listening: string | undefined;
  const replicator = await openReplication({
    ...jobs,
    config: () => running,
    db,
    clock,
    log,
    metrics,
    journal,
    upstreams,
    names,
    hosted,
    mirror,
    address: () => listening,
    operatorSecret: access.operatorSecret,
    stack,
    onFault,
  });
  exposeState(metrics, { jobs, evictor, downloads, uploads, upstreams, blobs, quotas });

  let stopping = false;
  const checks = async (): Promise<Check[]> => [
    ...(await check({ db, blobs, upstreams, minFree: running.storage.minFree, stopping })),
    ...(certificate ? [certificate.check()] : []),
  ];
  const imports = makeImports({
    ...jobs,
    config: () => running,
    db,
    catalog,
    hosted: hostedCatalog,
    names,
    host,
    blobs,
    room: { reserve: (bytes) => evictor.reserveForUpload(bytes) },
    journal,
    clock,
    ledger: evictor,
    quotas,
    namespaces,
    log,
  });
  const { server, callers } = makeServer({
    config,
    running: () => running,
    origins: () => origins,
    root,
    startedAtMs,
    clock,
    log,
    metrics,
    certificate,
    checks,
    db,
    blobs,
    catalog,
    hostedCatalog,
    namespaces,
    uploads,
    upstreams,
    downloads,
    names,
    gate,
    registry,
    quotas,
    warming,
    evictor,
    journal,
    webhooks,
    access,
    jobs,
    upkeep,
    imports,
    replicator,
  });

  const tidying = new AbortController();
  const listingLifeMs = Math.max(0, ...Object.values(config.upstreams).map(({ maxStale }) => maxStale));
  const recovered = (async () => {
    if (!ownWork) return;
    while (!tidying.signal.aborted) {
      await recover({ catalog, blobs, clock, log, listingLifeMs, inFlight }, tidying.signal).catch((error: unknown) =>
        onFault("recover", error),
      );
      await uploads.expire().catch((error: unknown) => onFault("expire uploads", error));
      const { keep } = running.events;
      await journal
        // A clock that has jumped ahead makes what is young look old.
        .expire(keep === 0 ? 0 : keep + jobs.watch.gainedMs(keep), tidying.signal)
        .catch((error: unknown) => onFault("expire events", error));
      await access.tokens.rotate().catch((error: unknown) => onFault("rotate keys", error));
      await clock.sleep(DAY_MS, tidying.signal).catch(() => undefined);
    }
  })();
  stack.defer(async () => {
    tidying.abort();
    await recovered;
  });

  if (ownWork) {
    await webhooks.start();
    await replicator.start();
  }
  const address = await server.listen();
  listening = address;
  stack.defer(() => {
    stopping = true;
    // Who watches would be waited for.
    replicator.feed.end();
    return server.close(running.server.drainTimeout);
  });
  if (ownWork) {
    jobs.runner.start();
    jobs.schedule.start();
  }
  // Before the server waits for answers: jobs go on after the next start.
  stack.defer(async () => {
    await jobs.schedule.stop();
    await jobs.runner.stop();
  });
  if (ownWork && !callers.openHere && !accounts.hasLogins && !running.access.htpasswd) {
    access.setup.offer(config.server.publicUrl ?? address);
  }
  log.info({ address, root, upstreams: [...upstreams.keys()], version: VERSION }, "entrepot is ready");

  const owned = stack.move();
  const reload: App["reload"] = (next, from) => {
    const { changed, needRestart, ...plan } = planReload(running, next);
    running = plan.config;
    void certificate?.reload();
    void access.htpasswd?.reload();
    if (from) origins = from;
    if (changed.includes("log.level")) log.level = running.log.level;
    for (const [name, { remotes }] of upstreams) {
      const policy = running.upstreams[name];
      if (policy) upstreams.set(name, new Upstream(name, policy, remotes));
    }
    return { changed, needRestart };
  };
  return { address, metrics, reload, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
