import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Accounts } from "../../src/access/accounts.ts";
import { Spaces } from "../../src/access/spaces.ts";
import { Teams } from "../../src/access/teams.ts";
import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Database } from "../../src/db/database.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { Journal } from "../../src/events/journal.ts";

export const BY = { actor: "root" };

/** Users, teams and spaces over a database of their own. */
export interface World extends AsyncDisposable {
  readonly db: Database;
  readonly journal: Journal;
  readonly accounts: Accounts;
  readonly spaces: Spaces;
  readonly teams: Teams;
  /** Spaces as a restart would load them. */
  reopened(): Promise<Spaces>;
  /** What was recorded, oldest first: `team:a: added`. */
  told(): Promise<string[]>;
}

/** @param upstreams as in a configuration @param namespaces that the configuration names */
export async function makeWorld(
  upstreams: Record<string, object> = {},
  namespaces: readonly string[] = [],
): Promise<World> {
  const root = await mkdtemp(join(tmpdir(), "entrepot-"));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rm(root, { recursive: true, force: true }));
  const config = parseConfig({ storage: { root }, hosted: { namespaces: [...namespaces] }, upstreams });
  const db = stack.use(await openSqlite(join(root, "entrepot.db")));
  const log = await createLog({ level: "silent", format: "json", destination: { write: () => undefined } });
  const clock = systemClock;
  const fail = (_: string, error: unknown): never => {
    throw error;
  };
  const journal = stack.use(
    new Journal({ db, clock, config: () => config.events, log, metrics: new Metrics(), onFault: fail }),
  );
  const accounts = stack.use(await Accounts.open({ db, clock, journal }));
  const reopened = (): Promise<Spaces> =>
    Spaces.open({ db, clock, accounts, upstreams: () => config.upstreams, namespaces });
  const spaces = await reopened();
  const teams = new Teams({ db, clock, accounts, spaces });
  const told = async (): Promise<string[]> =>
    (await journal.after(0, 1000)).map(({ subject, detail }) => `${subject}: ${detail}`);
  const owned = stack.move();
  return {
    db,
    journal,
    accounts,
    spaces,
    teams,
    reopened,
    told,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
