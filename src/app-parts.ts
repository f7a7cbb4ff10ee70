/**
 * What a daemon is made of, part by part: each function constructs the classes of one concern and what binds them. `app.ts` puts the parts
 * together, with the HTTP side (`app-http.ts`); `app-stored.ts` does it for a daemon that does not run. Nobody else constructs.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "./base/clock.ts";
import type { Logger } from "./base/log.ts";
import type { Metrics } from "./base/metrics.ts";
import type { Config } from "./config/schema.ts";
import type { Database } from "./db/database.ts";
import { lockStorage } from "./db/lock.ts";
import { openSqlite } from "./db/sqlite.ts";
import { Accounts } from "./access/accounts.ts";
import { Authenticator } from "./access/authenticate.ts";
import { Brakes } from "./access/brakes.ts";
import { Credentials } from "./access/credentials.ts";
import { Htpasswd } from "./access/htpasswd.ts";
import { keepOperatorSecret } from "./access/operator.ts";
import { Passwords } from "./access/passwords.ts";
import { addFirstAdmin, firstLoginOf, Setup } from "./access/setup.ts";
import { Spaces } from "./access/spaces.ts";
import { Teams } from "./access/teams.ts";
import { serviceName, Tokens } from "./access/tokens.ts";
import type { Journal } from "./events/journal.ts";
import type { Check } from "./http/check.ts";
import { JobQueue } from "./jobs/queue.ts";
import { JobRunner } from "./jobs/runner.ts";
import { JobSchedule } from "./jobs/schedule.ts";
import { importJob, type ImportJob } from "./moving/import-job.ts";
import type { ImportDeps } from "./moving/import.ts";
import type { RepositoryName } from "./oci/reference.ts";
import type { HostedRepositories } from "./registry/hosted.ts";
import type { Mirror } from "./registry/mirror.ts";
import type { Names } from "./registry/names.ts";
import { type Located } from "./registry/names.ts";
import { immutableTags } from "./registry/policy.ts";
import type { Quotas } from "./registry/quota.ts";
import type { Upstream } from "./registry/upstream.ts";
import type { RemoteObserver } from "./remote/remote.ts";
import { ownEndpoint } from "./replication/own-endpoint.ts";
import { Registries } from "./replication/registries.ts";
import { Replicator, type ReplicatorDeps } from "./replication/replicator.ts";
import { RuleBook } from "./replication/rule-book.ts";
import { UploadSessions } from "./replication/upload-memory.ts";
import type { Catalog } from "./store/catalog.ts";
import { FileBlobStore } from "./store/blobs-fs.ts";
import type { BlobStore } from "./store/blobs.ts";
import { GarbageCatalog } from "./store/garbage.ts";
import { ImportCatalog } from "./store/import-catalog.ts";
import { Inventory } from "./store/inventory.ts";
import { TagCatalog } from "./store/tag-catalog.ts";
import type { Uploads } from "./store/uploads.ts";
import { UsageAudit } from "./store/usage-audit.ts";
import { visibleRepositories } from "./store/visible.ts";
import type { Downloads } from "./transfer/download.ts";
import { ClockWatch } from "./upkeep/clock-watch.ts";
import type { Evictor } from "./upkeep/evict.ts";
import { GarbageCollector, type GcDeps } from "./upkeep/gc.ts";
import { Retention, type RetentionDeps } from "./upkeep/retention.ts";
import { Scrubber, type Repair, type ScrubDeps } from "./upkeep/scrub.ts";
import { Upkeep, type UpkeepDeps } from "./upkeep/upkeep.ts";

interface AccessParts {
  config: () => Config;
  root: string;
  db: Database;
  clock: Clock;
  journal: Journal;
  log: Logger;
  metrics: Metrics;
  ownWork: boolean;
  stack: AsyncDisposableStack;
}

/** Everything about who asks and what they may. */
export async function openAccess(parts: AccessParts) {
  const { config, root, db, clock, journal, log, metrics, ownWork, stack } = parts;
  const accounts = stack.use(await Accounts.open({ db, clock, journal }));
  const spaces = await Spaces.open({
    db,
    clock,
    accounts,
    upstreams: () => config().upstreams,
    namespaces: config().hosted.namespaces,
  });
  const teams = new Teams({ db, clock, accounts, spaces });
  const credentials = stack.use(new Credentials({ db, clock, accounts }));
  const passwords = stack.use(new Passwords());
  const tokens = await Tokens.open({ db, clock, config: () => config().access.tokens, service: serviceName(config()) });
  const { htpasswd: file } = config().access;
  const role = (): NonNullable<Config["access"]["htpasswd"]>["role"] => config().access.htpasswd?.role ?? "viewer";
  const htpasswd = file && stack.use(await Htpasswd.open({ path: file.path, role, clock, log }));
  const operatorSecret = await keepOperatorSecret(root);
  const authenticator = new Authenticator({
    accounts,
    credentials,
    passwords,
    htpasswd,
    brakes: new Brakes(() => config().access.brakes),
    tokens,
    operatorSecret,
    journal,
    metrics,
    clock,
  });
  const login = { accounts, passwords, access: () => config().access, log };
  if (ownWork) await addFirstAdmin(login, () => firstLoginOf(process.env));
  const isForeign = (name: string): boolean => htpasswd?.hashOf(name) !== undefined;
  const setup = new Setup(login);
  return {
    accounts,
    spaces,
    teams,
    credentials,
    passwords,
    tokens,
    htpasswd,
    authenticator,
    setup,
    isForeign,
    operatorSecret,
  };
}

interface Jobs extends Pick<UpkeepDeps, "queue" | "runner" | "schedule"> {
  watch: ClockWatch;
}

/** Nothing runs before it is started or asked for. */
export function makeJobs(deps: { db: Database; clock: Clock; log: Logger; metrics: Metrics }): Jobs {
  const queue = new JobQueue(deps.db, deps.clock);
  const runner = new JobRunner({ ...deps, queue });
  const watch = new ClockWatch(deps.clock);
  return { queue, runner, watch, schedule: new JobSchedule({ ...deps, queue, runner, look: () => watch.look() }) };
}

type UpkeepParts = Omit<GcDeps, "limits" | "garbage"> &
  Omit<ScrubDeps, "bandwidth" | "inventory" | "audit"> &
  Omit<RetentionDeps, "tags" | "config"> &
  Jobs & { config: () => Config; db: Database };

export function makeUpkeep({ config, db, ...parts }: UpkeepParts): Upkeep {
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

export function makeImports({ config, db, catalog, ...parts }: ImportParts): ImportJob {
  return importJob({
    ...parts,
    imports: new ImportCatalog(db, catalog),
    isImmutable: (repository, tag) => immutableTags(config().hosted.immutableTags)(repository, tag),
  });
}

interface ReplicationParts extends Omit<ReplicatorDeps, "config" | "rules" | "registries" | "uploads"> {
  config: () => Config;
  upstreams: ReadonlyMap<string, Upstream>;
  names: Names;
  hosted: HostedRepositories;
  mirror: Mirror;
  /** Where it listens, once it does. */
  address: () => string | undefined;
  operatorSecret: string;
  stack: AsyncDisposableStack;
}

export async function openReplication(parts: ReplicationParts): Promise<Replicator> {
  const { config, db, clock, log, upstreams, names, hosted, mirror, address, operatorSecret, stack, onFault } = parts;
  const registries = stack.use(
    new Registries({
      config: () => config().replication,
      self: async () => {
        const listening = address();
        if (listening === undefined) throw new Error("the daemon is starting");
        return ownEndpoint({ address: listening, publicUrl: config().server.publicUrl, operatorSecret });
      },
      local: {
        names,
        hosted: hosted.pulls,
        mirror,
        repositories: (last, limit) =>
          visibleRepositories(db, last, limit, {
            sees: (_, upstream) => upstream === undefined || upstreams.has(upstream),
            ahead: (from) => from,
          }),
      },
      flights: mirror,
      upstreams,
      clock,
      log,
    }),
  );
  const uploads = stack.use(await UploadSessions.open({ db, clock, onFault }));
  const section = (): Config["replication"] => config().replication;
  const rules = await RuleBook.open({ db, clock, log, journal: parts.journal, config: section });
  return stack.use(await Replicator.open({ ...parts, config: section, rules, registries, uploads }));
}

export async function openStorage(
  root: string,
  stack: AsyncDisposableStack,
): Promise<{ db: Database; blobs: BlobStore }> {
  try {
    // What is private in the registry is private on the disk.
    await mkdir(root, { recursive: true, mode: 0o700 });
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

export function repairFrom(mirror: Mirror, names: Names): Repair {
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

export function upstreamObserver(metrics: Metrics, upstream: string): RemoteObserver {
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
export function exposeState(metrics: Metrics, exposed: Exposed): void {
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

export async function check({ db, blobs, upstreams, minFree, stopping }: Checked): Promise<Check[]> {
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
