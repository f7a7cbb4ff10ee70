import { randomUUID } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { systemClock, type Clock } from "./base/clock.ts";
import type { Logger } from "./base/log.ts";
import { Metrics } from "./base/metrics.ts";
import { VERSION } from "./base/version.ts";
import type { LoadedConfig } from "./config/load.ts";
import { printConfigJson } from "./config/print.ts";
import { planReload, type Reload } from "./config/reload.ts";
import type { Config } from "./config/schema.ts";
import type { Database } from "./db/database.ts";
import { lockStorage } from "./db/lock.ts";
import { openSqlite } from "./db/sqlite.ts";
import { Journal } from "./events/journal.ts";
import { Webhooks } from "./events/webhooks.ts";
import { eventOperations } from "./http/api/events.ts";
import { cacheOperations } from "./http/api/cache.ts";
import { daemonOperations } from "./http/api/daemon.ts";
import { manifestOperations } from "./http/api/manifests.ts";
import { repositoryOperations } from "./http/api/repositories.ts";
import { apiRoutes } from "./http/api/routes.ts";
import { jobOperations } from "./http/api/jobs.ts";
import { retentionOperations } from "./http/api/retention.ts";
import { importOperations } from "./http/api/import.ts";
import { upkeepOperations } from "./http/api/upkeep.ts";
import { namespaceOperations } from "./http/api/namespaces.ts";
import { webhookOperations } from "./http/api/webhooks.ts";
import { opsRoutes, type Check } from "./http/ops.ts";
import { ownHostReader } from "./http/own-host.ts";
import { searchRoutes } from "./http/search.ts";
import { HttpServer } from "./http/server.ts";
import { V2 } from "./http/v2.ts";
import { registerForgetting } from "./jobs/forget.ts";
import { JobQueue } from "./jobs/queue.ts";
import { JobRunner } from "./jobs/runner.ts";
import { JobSchedule } from "./jobs/schedule.ts";
import { importJob, type ImportJob } from "./moving/import-job.ts";
import type { ImportDeps } from "./moving/import.ts";
import type { Digest } from "./oci/digest.ts";
import type { RepositoryName } from "./oci/reference.ts";
import { HostedRepositories } from "./registry/hosted.ts";
import { Mirror } from "./registry/mirror.ts";
import { Names, type Located } from "./registry/names.ts";
import { immutableTags } from "./registry/policy.ts";
import { Quotas } from "./registry/quota.ts";
import { Registry } from "./registry/registry.ts";
import { Removal } from "./registry/removal.ts";
import { StoredBlobs } from "./registry/stored-blobs.ts";
import { Upstream } from "./registry/upstream.ts";
import { Warming } from "./registry/warm.ts";
import { createRemote, type Remote, type RemoteObserver } from "./remote/remote.ts";
import { Browse } from "./store/browse.ts";
import { CachedHolders } from "./store/cached-holders.ts";
import { Catalog, type Ledger } from "./store/catalog.ts";
import { Emptying } from "./store/emptying.ts";
import { FileBlobStore } from "./store/blobs-fs.ts";
import type { BlobStore } from "./store/blobs.ts";
import { GarbageCatalog } from "./store/garbage.ts";
import { HostedCatalog } from "./store/hosted-catalog.ts";
import { ImportCatalog } from "./store/import-catalog.ts";
import { Inventory } from "./store/inventory.ts";
import { MemoryCache } from "./store/memory.ts";
import { Namespaces } from "./store/namespaces.ts";
import { TagCatalog } from "./store/tag-catalog.ts";
import { Uploads } from "./store/uploads.ts";
import { UsageAudit } from "./store/usage-audit.ts";
import { Usage } from "./store/usage.ts";
import { Downloads } from "./transfer/download.ts";
import { ClockWatch } from "./upkeep/clock-watch.ts";
import { Evictor } from "./upkeep/evict.ts";
import { GarbageCollector, type GcDeps } from "./upkeep/gc.ts";
import { Purge } from "./upkeep/purge.ts";
import { recover } from "./upkeep/recover.ts";
import { Retention, type RetentionDeps } from "./upkeep/retention.ts";
import { Scrubber, type Repair, type ScrubDeps } from "./upkeep/scrub.ts";
import { Upkeep, type UpkeepDeps } from "./upkeep/upkeep.ts";

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
 * Constructs the daemon and starts it: the only place that constructs. Dials nothing: an upstream that is away does not keep it from starting.
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
    names,
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
  const registry = new Registry(names, mirror, hosted, catalog, journal);
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
  exposeState(metrics, { jobs, evictor, downloads, uploads, upstreams, blobs, quotas });

  let stopping = false;
  const checks = (): Promise<Check[]> => check({ db, blobs, upstreams, minFree: running.storage.minFree, stopping });
  const ops = opsRoutes({
    metrics,
    checks,
    home: { publicUrl: config.server.publicUrl, upstreams: Object.keys(config.upstreams), version: VERSION },
  });
  const imports = makeImports({
    ...jobs,
    config: () => running,
    db,
    catalog,
    hosted: hostedCatalog,
    names,
    blobs,
    room: { reserve: (bytes) => evictor.reserveForUpload(bytes) },
    journal,
    clock,
    ledger: evictor,
    quotas,
    namespaces,
    log,
  });
  const browse = new Browse(db);
  const emptying = new Emptying(db, catalog);
  const removal = new Removal({ config: () => running.hosted, hosted: hostedCatalog, emptying, journal });
  const purge = new Purge({ browse, holders: new CachedHolders(db, catalog), emptying, evictor });
  const isOwnHost = ownHostReader(config.server);
  const api = apiRoutes({
    from: () => running.admin.from,
    isOwnHost,
    progress: config.server.progress,
    operations: [
      ...daemonOperations({
        status: async () => ({
          version: VERSION,
          startedAtMs,
          nowMs: clock.now(),
          storage: {
            root,
            freeBytes: await blobs.freeBytes(),
            minFreeBytes: running.storage.minFree,
            cacheBytes: evictor.used.values().reduce((sum, bytes) => sum + bytes, 0),
            cacheMaxBytes: running.storage.cacheMaxSize,
          },
          uploads: uploads.inProgress,
          flights: downloads.progress.length,
          checks: await checks(),
        }),
        flights: () => downloads.progress,
        config: () => printConfigJson({ config: running, origins, warnings: [] }),
      }),
      ...repositoryOperations({ browse, catalog, hosted, removal, purge }),
      ...manifestOperations({ browse, catalog, hostedCatalog, blobs }),
      ...cacheOperations({
        upstreams,
        browse,
        purge,
        used: () => evictor.used,
        maxBytes: () => running.storage.cacheMaxSize,
        nowMs: () => clock.now(),
      }),
      ...upkeepOperations({ warming, upkeep }),
      ...importOperations({ imports }),
      ...retentionOperations({ upkeep, config: () => running.retention }),
      ...jobOperations(jobs),
      ...eventOperations({ journal }),
      ...webhookOperations({ webhooks }),
      ...namespaceOperations({ namespaces, quotas }),
    ],
  });
  const search = searchRoutes({ registry });
  const server = new HttpServer({
    config: config.server,
    get logRequests() {
      return running.log.requests;
    },
    log,
    metrics,
    v2: new V2({
      registry,
      quotas,
      metrics,
      isOwnHost,
      progress: config.server.progress,
      publicUrl: config.server.publicUrl,
      hosted: () => running.hosted,
    }),
    routes: (ctx, next) => ops(ctx, () => search(ctx, () => api(ctx, next))),
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
      await clock.sleep(DAY_MS, tidying.signal).catch(() => undefined);
    }
  })();
  stack.defer(async () => {
    tidying.abort();
    await recovered;
  });

  if (ownWork) await webhooks.start();
  const address = await server.listen();
  stack.defer(() => {
    stopping = true;
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
  log.info({ address, root, upstreams: [...upstreams.keys()], version: VERSION }, "entrepot is ready");

  const owned = stack.move();
  const reload: App["reload"] = (next, from) => {
    const { changed, needRestart, ...plan } = planReload(running, next);
    running = plan.config;
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

/** The storage of a daemon that does not run, for what looks after it. It is this process's alone until it is disposed of. */
export interface StoredContent extends AsyncDisposable {
  readonly upkeep: Upkeep;
  readonly import: ImportJob;
}

/** @throws Error naming cause and remedy: storage not writable or in use */
export async function openStoredContent(
  config: Config,
  { log, clock = systemClock }: AppOptions,
): Promise<StoredContent> {
  await using stack = new AsyncDisposableStack();
  const onFault = (operation: string, error: unknown): void =>
    log.warn({ operation, err: error }, "upkeep failed in part");
  const { db, blobs } = await openStorage(resolve(config.storage.root), stack);
  const catalog = new Catalog(db);
  const metrics = new Metrics();
  const jobs = makeJobs({ db, clock, log, metrics });
  const journal = stack.use(new Journal({ db, clock, config: () => config.events, log, metrics, onFault }));
  // The next daemon counts for itself.
  const ledger: Ledger = { added: () => undefined, removed: () => undefined };
  const upkeep = makeUpkeep({
    ...jobs,
    config: () => config,
    db,
    catalog,
    blobs,
    memory: new MemoryCache(0),
    usage: stack.use(new Usage(catalog, clock, onFault)),
    clock,
    journal,
    ledger,
    inFlight: () => new Set(),
    repair: undefined,
    log,
    metrics,
  });
  const names = new Names(config);
  const hosted = new HostedCatalog(db, catalog);
  for (const namespace of await hosted.namespaces()) names.host(namespace);
  const namespaces = new Namespaces(db);
  const imports = makeImports({
    ...jobs,
    config: () => config,
    db,
    catalog,
    hosted,
    names,
    blobs,
    room: {
      reserve: async (bytes) =>
        (await blobs.freeBytes()) - bytes < config.storage.minFree ? undefined : { release: () => undefined },
    },
    journal,
    clock,
    ledger,
    quotas: new Quotas({ rules: () => config.hosted.quotas, namespaces, clock, log }),
    namespaces,
    log,
  });
  // Neither started: what was asked for runs, and nothing else.
  stack.defer(() => jobs.runner.stop());
  const owned = stack.move();
  return { upkeep, import: imports, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

interface Jobs extends Pick<UpkeepDeps, "queue" | "runner" | "schedule"> {
  watch: ClockWatch;
}

/** Nothing runs before it is started or asked for. */
function makeJobs(deps: { db: Database; clock: Clock; log: Logger; metrics: Metrics }): Jobs {
  const queue = new JobQueue(deps.db, deps.clock);
  const runner = new JobRunner({ ...deps, queue });
  const watch = new ClockWatch(deps.clock);
  return { queue, runner, watch, schedule: new JobSchedule({ ...deps, queue, runner, look: () => watch.look() }) };
}

type UpkeepParts = Omit<GcDeps, "limits" | "garbage"> &
  Omit<ScrubDeps, "bandwidth" | "inventory" | "audit"> &
  Omit<RetentionDeps, "tags" | "config"> &
  Jobs & { config: () => Config; db: Database };

function makeUpkeep({ config, db, ...parts }: UpkeepParts): Upkeep {
  return new Upkeep({
    ...parts,
    intervals: () => ({ gc: config().gc.interval, scrub: config().scrub.interval }),
    retentionSchedule: () => config().retention.schedule,
    retention: new Retention({ ...parts, config, tags: new TagCatalog(db.background, parts.catalog) }),
    collector: new GarbageCollector({
      ...parts,
      limits: () => config().gc,
      garbage: new GarbageCatalog(db.background, parts.catalog),
    }),
    scrubber: new Scrubber({
      ...parts,
      bandwidth: () => config().scrub.bandwidth,
      inventory: new Inventory(db),
      audit: new UsageAudit(db.background),
    }),
  });
}

type ImportParts = Omit<ImportDeps, "imports" | "isImmutable"> &
  Pick<Jobs, "queue" | "runner"> & { config: () => Config; db: Database; catalog: Catalog; log: Logger };

function makeImports({ config, db, catalog, ...parts }: ImportParts): ImportJob {
  return importJob({
    ...parts,
    imports: new ImportCatalog(db, catalog),
    isImmutable: (repository, tag) => immutableTags(config().hosted.immutableTags)(repository, tag),
  });
}

async function openStorage(root: string, stack: AsyncDisposableStack): Promise<{ db: Database; blobs: BlobStore }> {
  try {
    await mkdir(root, { recursive: true });
    const blobs = await FileBlobStore.open(root);
    stack.defer(lockStorage(root));
    return { db: stack.use(await openSqlite(join(root, "entrepot.db"))), blobs };
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "EACCES" || code === "EROFS" || code === "EPERM") {
      throw new Error(
        `storage.root ${root} can't be written (${code}): give this user the folder, or set another one`,
        { cause },
      );
    }
    if (code === "EEXIST" || code === "ENOTDIR") {
      throw new Error(`storage.root ${root} is not a folder: move away what is there, or set another one`, { cause });
    }
    if (code === "SQLITE_FULL" || code === "ENOSPC") {
      throw new Error(`storage.root ${root} is on a full file system: free some space`, { cause });
    }
    throw cause;
  }
}

function repairFrom(mirror: Mirror, names: Names): Repair {
  const locate = (repository: RepositoryName): Extract<Located, { kind: "cached" }> => {
    const located = names.stored(repository);
    if (!located) throw new Error(`the upstream of ${repository} is configured no more`);
    return located;
  };
  return {
    blob: (repository, digest, signal) => mirror.bring(locate(repository), digest, signal),
    manifest: async (repository, digest) => void (await mirror.manifest(locate(repository), digest, false)),
  };
}

function upstreamObserver(metrics: Metrics, upstream: string): RemoteObserver {
  return {
    request: (kind, _method, code, seconds) => {
      metrics.upstreamRequests.inc({ upstream, kind, code });
      metrics.upstreamDuration.observe({ upstream, kind }, seconds);
    },
    received: (bytes) => metrics.upstreamReceivedBytes.inc({ upstream }, bytes),
  };
}

interface Exposed {
  jobs: Jobs;
  evictor: Evictor;
  downloads: Downloads;
  uploads: Uploads;
  upstreams: ReadonlyMap<string, Upstream>;
  blobs: BlobStore;
  quotas: Quotas;
}

/** Gauges that others own are read when Prometheus asks. */
function exposeState(metrics: Metrics, exposed: Exposed): void {
  const { jobs, evictor, downloads, uploads, upstreams, blobs, quotas } = exposed;
  metrics.onScrape(async () => {
    let cached = 0;
    for (const [upstream, bytes] of evictor.used) {
      metrics.cacheBytes.set({ upstream }, bytes);
      cached += bytes;
    }
    metrics.blobsBytes.set({ kind: "cached" }, cached);
    await quotas.expose(metrics).catch(() => undefined);
    await jobs.runner.expose().catch(() => undefined);
    metrics.cacheMaxBytes.set(evictor.limits.cacheMaxSize);
    metrics.flights.set(downloads.progress.length);
    metrics.uploads.set(uploads.inProgress);
    metrics.storageFreeBytes.set(await blobs.freeBytes().catch(() => 0));
    for (const [upstream, { remotes }] of upstreams) {
      metrics.upstreamUp.set({ upstream }, remotes.some(({ state }) => state.up) ? 1 : 0);
      const { rateLimit } = remotes[0].state;
      if (!rateLimit) continue;
      metrics.upstreamRateLimit.set({ upstream }, rateLimit.limit);
      metrics.upstreamRateRemaining.set({ upstream }, rateLimit.remaining);
    }
  });
}

interface Checked {
  db: Database;
  blobs: BlobStore;
  upstreams: ReadonlyMap<string, Upstream>;
  minFree: number;
  stopping: boolean;
}

async function check({ db, blobs, upstreams, minFree, stopping }: Checked): Promise<Check[]> {
  const describe = async (name: string, work: () => Promise<string>, informative = false): Promise<Check> => {
    try {
      return { name, ok: true, reason: await work(), informative };
    } catch (error) {
      return { name, ok: false, reason: (error as Error).message, informative };
    }
  };
  return Promise.all([
    describe("running", async () => {
      if (stopping) throw new Error("the daemon is stopping");
      return "accepts requests";
    }),
    describe("database", async () => {
      await db.get("SELECT 1 AS one");
      return "answers";
    }),
    describe(
      "space",
      async () => {
        const free = await blobs.freeBytes();
        if (free < minFree)
          throw new Error(`${free} bytes free, storage.minFree is ${minFree}: new content is passed through, not kept`);
        return `${free} bytes free`;
      },
      true,
    ),
    ...[...upstreams.values()].map((upstream) =>
      describe(
        `upstream ${upstream.name}`,
        async () => {
          if (!upstream.remotes.some(({ state }) => state.up))
            throw new Error("does not answer: what is cached is served");
          return "answers, as far as it was asked";
        },
        true,
      ),
    ),
  ]);
}
