/** The HTTP side of a daemon: every endpoint, and the server that answers them. Part of what `app.ts` puts together. */
import type { Clock } from "./base/clock.ts";
import type { Logger } from "./base/log.ts";
import type { Metrics } from "./base/metrics.ts";
import { VERSION } from "./base/version.ts";
import type { LoadedConfig } from "./config/load.ts";
import { printConfigJson } from "./config/print.ts";
import type { Config } from "./config/schema.ts";
import type { Database } from "./db/database.ts";
import { createRules } from "./access/create-rules.ts";
import type { Caller } from "./access/principal.ts";
import { sightOf } from "./access/sight.ts";
import type { Journal } from "./events/journal.ts";
import type { Webhooks } from "./events/webhooks.ts";
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
import { robotOperations } from "./http/api/robots.ts";
import { replicationOperations } from "./http/api/replication.ts";
import { sessionOperations } from "./http/api/session.ts";
import { teamOperations } from "./http/api/teams.ts";
import { grantOperations } from "./http/api/grants.ts";
import { tokenOperations } from "./http/api/tokens.ts";
import { userOperations } from "./http/api/users.ts";
import { Callers } from "./http/callers.ts";
import { challengeTo } from "./http/challenge.ts";
import type { Check } from "./http/check.ts";
import { notificationRoutes } from "./http/notifications.ts";
import { opsRoutes } from "./http/ops.ts";
import { ownHostReader } from "./http/own-host.ts";
import { searchRoutes } from "./http/search.ts";
import { HttpServer } from "./http/server.ts";
import { setupRoutes } from "./http/setup.ts";
import type { ServedCertificate } from "./http/tls.ts";
import { tokenRoutes } from "./http/token.ts";
import { V2 } from "./http/v2.ts";
import type { ImportJob } from "./moving/import-job.ts";
import type { Gate } from "./registry/gate.ts";
import type { Names } from "./registry/names.ts";
import type { Quotas } from "./registry/quota.ts";
import type { Registry } from "./registry/registry.ts";
import { Removal } from "./registry/removal.ts";
import type { Upstream } from "./registry/upstream.ts";
import type { Warming } from "./registry/warm.ts";
import { History } from "./replication/history.ts";
import type { Replicator } from "./replication/replicator.ts";
import type { BlobStore } from "./store/blobs.ts";
import { Browse } from "./store/browse.ts";
import { CachedHolders } from "./store/cached-holders.ts";
import type { Catalog } from "./store/catalog.ts";
import { Emptying } from "./store/emptying.ts";
import type { HostedCatalog } from "./store/hosted-catalog.ts";
import type { Namespaces } from "./store/namespaces.ts";
import type { Uploads } from "./store/uploads.ts";
import { visibleRepositories } from "./store/visible.ts";
import type { Downloads } from "./transfer/download.ts";
import type { Evictor } from "./upkeep/evict.ts";
import { Purge } from "./upkeep/purge.ts";
import type { Upkeep } from "./upkeep/upkeep.ts";
import type { makeJobs, openAccess } from "./app-parts.ts";

interface ServerParts {
  /** As the daemon was started; what a reload may change is read from `running`. */
  config: Config;
  running: () => Config;
  origins: () => NonNullable<LoadedConfig["origins"]>;
  root: string;
  startedAtMs: number;
  clock: Clock;
  log: Logger;
  metrics: Metrics;
  certificate: ServedCertificate | undefined;
  checks: () => Promise<Check[]>;
  db: Database;
  blobs: BlobStore;
  catalog: Catalog;
  hostedCatalog: HostedCatalog;
  namespaces: Namespaces;
  uploads: Uploads;
  upstreams: ReadonlyMap<string, Upstream>;
  downloads: Downloads;
  names: Names;
  gate: Gate;
  registry: Registry;
  quotas: Quotas;
  warming: Warming;
  evictor: Evictor;
  journal: Journal;
  webhooks: Webhooks;
  access: Awaited<ReturnType<typeof openAccess>>;
  jobs: ReturnType<typeof makeJobs>;
  upkeep: Upkeep;
  imports: ImportJob;
  replicator: Replicator;
}

/** It listens when it is told to. */
export function makeServer(parts: ServerParts): { server: HttpServer; callers: Callers } {
  const { config, running, origins, root, startedAtMs, clock, log, metrics, certificate, checks } = parts;
  const { db, blobs, catalog, hostedCatalog, namespaces, uploads, upstreams, downloads, names, gate } = parts;
  const { registry, quotas, warming, evictor, journal, webhooks, access, jobs, upkeep, imports, replicator } = parts;
  const { hosted } = registry;
  const { spaces, accounts } = access;
  const visible = (caller: Caller, last: string, limit: number): ReturnType<typeof visibleRepositories> =>
    visibleRepositories(db, last, limit, sightOf(caller, spaces));
  const ops = opsRoutes({
    metrics,
    metricsFor: () => running().access.metrics,
    checks,
    home: { publicUrl: config.server.publicUrl, upstreams: Object.keys(config.upstreams), version: VERSION },
  });
  const browse = new Browse(db);
  const emptying = new Emptying(db, catalog);
  const removal = new Removal({ config: () => running().hosted, hosted: hostedCatalog, emptying, journal });
  const purge = new Purge({ browse, holders: new CachedHolders(db, catalog), emptying, evictor });
  const isOwnHost = ownHostReader(config.server);
  const api = apiRoutes({
    gate,
    names,
    journal,
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
            minFreeBytes: running().storage.minFree,
            cacheBytes: evictor.used.values().reduce((sum, bytes) => sum + bytes, 0),
            cacheMaxBytes: running().storage.cacheMaxSize,
          },
          uploads: uploads.inProgress,
          flights: downloads.progress.length,
          checks: await checks(),
        }),
        flights: () => downloads.progress,
        config: () => printConfigJson({ config: running(), origins: origins(), warnings: [] }),
      }),
      ...repositoryOperations({ spaces, browse, catalog, hosted, removal, purge }),
      ...manifestOperations({ browse, catalog, hostedCatalog, blobs }),
      ...cacheOperations({
        upstreams,
        browse,
        purge,
        used: () => evictor.used,
        maxBytes: () => running().storage.cacheMaxSize,
        nowMs: () => clock.now(),
      }),
      ...upkeepOperations({ warming, upkeep }),
      ...importOperations({ imports }),
      ...retentionOperations({ upkeep, config: () => running().retention }),
      ...jobOperations(jobs),
      ...eventOperations({ journal }),
      ...webhookOperations({ webhooks }),
      ...userOperations({ ...access, names, access: () => running().access, isForeign: access.isForeign, clock }),
      ...sessionOperations({ ...access, access: () => running().access }),
      ...teamOperations({ ...access, create: () => running().access.create }),
      ...grantOperations({ ...access, upstreams: () => running().upstreams }),
      ...robotOperations({ ...access, clock }),
      ...tokenOperations({ ...access, clock }),
      ...replicationOperations({ replicator, history: new History(db) }),
      ...namespaceOperations({ ...access, names, namespaces, quotas, create: () => createRules(running()) }),
    ],
  });
  const notifications = notificationRoutes({
    config: running,
    db,
    pushedWithin: (tx, pushed, trigger) => replicator.pushedWithin(tx, pushed, trigger),
    wake: (kind) => jobs.runner.wake(kind),
    journal,
    clock,
    progress: config.server.progress,
  });
  const search = searchRoutes({ registry, visible });
  const tokenService = tokenRoutes({
    ...access,
    gate,
    metrics,
    progress: config.server.progress,
    audiences: () => running().access.tokens.audiences,
  });
  const setupPage = setupRoutes(access);
  const service = { publicUrl: config.server.publicUrl, service: access.tokens.service };
  const callers = new Callers({
    authenticator: access.authenticator,
    accounts,
    listen: config.server.listen,
    access: () => running().access,
    isOwnHost,
  });
  const server = new HttpServer({
    callers,
    challenge: (request, error) => challengeTo(request, error, names, service),
    config: config.server,
    certificate,
    get logRequests() {
      return running().log.requests;
    },
    log,
    metrics,
    v2: new V2({
      registry,
      gate,
      visible,
      quotas,
      metrics,
      isOwnHost,
      progress: config.server.progress,
      publicUrl: config.server.publicUrl,
      hosted: () => running().hosted,
    }),
    routes: (ctx, next) =>
      ops(ctx, () =>
        tokenService(ctx, () => setupPage(ctx, () => search(ctx, () => notifications(ctx, () => api(ctx, next))))),
      ),
  });
  return { server, callers };
}
