import { systemClock } from "../../src/base/clock.ts";
import { createLog } from "../../src/base/log.ts";
import { Metrics } from "../../src/base/metrics.ts";
import type { Database } from "../../src/db/database.ts";
import type { Requester } from "../../src/events/event.ts";
import { Journal } from "../../src/events/journal.ts";

/** Who changes rules here. */
export const BY: Requester = { actor: "alice", address: "127.0.0.1", agent: undefined, requestId: "1" };

/** Where changes of rules are recorded. To be disposed of before the database. */
export async function startJournal(db: Database): Promise<Journal> {
  const log = await createLog({ level: "silent", format: "json", destination: { write: () => undefined } });
  const events = { keep: 0, pulls: true };
  const onFault = (): void => undefined;
  return new Journal({ db, clock: systemClock, config: () => events, log, metrics: new Metrics(), onFault });
}
