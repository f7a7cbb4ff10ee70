import { resolve } from "node:path";
import { systemClock, type Clock } from "./base/clock.ts";
import type { Logger } from "./base/log.ts";
import { Metrics } from "./base/metrics.ts";
import type { Config } from "./config/schema.ts";
import { Journal } from "./events/journal.ts";
import type { ImportJob } from "./moving/import-job.ts";
import { Names } from "./registry/names.ts";
import { Quotas } from "./registry/quota.ts";
import { Catalog, type Ledger } from "./store/catalog.ts";
import { HostedCatalog } from "./store/hosted-catalog.ts";
import { MemoryCache } from "./store/memory.ts";
import { Namespaces } from "./store/namespaces.ts";
import { Usage } from "./store/usage.ts";
import type { Upkeep } from "./upkeep/upkeep.ts";
import { makeImports, makeJobs, makeUpkeep, openStorage } from "./app-parts.ts";

/** The storage of a daemon that does not run, for what looks after it. It is this process's alone until it is disposed of. */
export interface StoredContent extends AsyncDisposable {
  readonly upkeep: Upkeep;
  readonly import: ImportJob;
}

/** @throws Error naming cause and remedy: storage not writable or in use */
export async function openStoredContent(
  config: Config,
  { log, clock = systemClock }: { log: Logger; clock?: Clock },
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
    host: async (namespace) => names.host(namespace),
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
