import { createHash } from "node:crypto";
import type { Clock } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import { pathText, type Fault, type Path } from "../config/faults.ts";
import { parseReplicationRule } from "../config/load.ts";
import { replicationFaults } from "../config/replication-checks.ts";
import { isMapping, type Config, type ReplicationRule } from "../config/schema.ts";
import type { Database, Reader, Writer } from "../db/database.ts";
import type { Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";

type Section = Config["replication"];

export interface KnownRule {
  rule: ReplicationRule;
  origin: "config" | "api";
  /** Changes with all of the rule. */
  etag: string;
}

/** A rule of the API that cannot be applied as the configuration is now. */
export interface FaultyRule {
  name: string;
  faults: readonly Fault[];
}

/** A rule was refused. Paths are those within the rule, such as `to[0].registry`. */
export class RuleRefused extends Error {
  override readonly name = "RuleRefused";
  readonly faults: readonly Fault[];

  constructor(rule: string, faults: readonly Fault[]) {
    super(`the rule ${rule} cannot be applied: ${faultsText(faults)}`);
    this.faults = faults;
  }
}

export interface RuleBookDeps {
  db: Database;
  clock: Clock;
  log: Logger;
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Section;
  journal: Pick<Journal, "recordWithin" | "recorded">;
}

interface Row {
  name: string;
  /** As it was given, in JSON: what it leaves out gets its default anew. */
  rule: string;
}

interface Judged {
  known: ReadonlyMap<string, KnownRule>;
  faulty: readonly FaultyRule[];
}

/** Those of the configuration stand where they stand; of two rules of the API that are at odds, the one that was changed last is at fault. */
const LIST = "SELECT name, rule FROM replication_rules ORDER BY changed_at, name";

/** All rules there are: the configured ones, and beside them those that were made by the API. */
export class RuleBook {
  readonly #deps: RuleBookDeps;
  #rows: readonly Row[];
  #judged: (Judged & { of: Section; rows: readonly Row[] }) | undefined;
  readonly #listeners = new Set<() => void>();
  /** Told once, not whenever somebody asks. */
  #told = "";

  private constructor(deps: RuleBookDeps, rows: readonly Row[]) {
    this.#deps = deps;
    this.#rows = rows;
  }

  static async open(deps: RuleBookDeps): Promise<RuleBook> {
    return new RuleBook(deps, await deps.db.all<Row>(LIST));
  }

  /** Those that can be applied. */
  all(): readonly KnownRule[] {
    return [...this.#look().known.values()];
  }

  /** @returns undefined also for one that is faulty */
  get(name: string): KnownRule | undefined {
    return this.#look().known.get(name);
  }

  isFaulty(name: string): boolean {
    return this.faulty().some((faulty) => faulty.name === name);
  }

  /** Rules of the API that a changed configuration has made faulty: they do not run. */
  faulty(): readonly FaultyRule[] {
    return this.#look().faulty;
  }

  /** @param listener is called when the API has changed rules @returns ends that */
  onChanged(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /**
   * Makes or replaces a rule of the API.
   * @param given as in the configuration, with or without its name
   * @param by who does it, for the record
   * @param check is called with the ETag of the rule that is there, in the transaction: it throws where that is not the expected one
   * @throws RuleRefused with every fault; what `check` throws
   */
  async put(
    name: string,
    given: unknown,
    by: Requester,
    check: (etag: string | undefined) => void = () => undefined,
  ): Promise<KnownRule> {
    const { db, clock, config } = this.#deps;
    const known = await db.transaction("durable", async (tx) => {
      const rows = await tx.all<Row>(LIST);
      const etag = etagIn(rows, name);
      check(etag);
      const row = { name, rule: JSON.stringify(withName(name, given)) };
      const judged = judge(config(), [...rows.filter((other) => other.name !== name), row]);
      const faults = judged.faulty.findLast((faulty) => faulty.name === name)?.faults;
      if (faults) throw new RuleRefused(name, faults);
      await tx.run(
        `INSERT INTO replication_rules (name, rule, changed_at) VALUES (:name, :rule, :nowMs)
         ON CONFLICT (name) DO UPDATE SET rule = excluded.rule, changed_at = excluded.changed_at`,
        { ...row, nowMs: clock.now() },
      );
      await this.#record(tx, name, etag === undefined ? "made" : "replaced", by);
      return judged.known.get(name) as KnownRule;
    });
    await this.#read(db);
    return known;
  }

  /**
   * Removes a rule of the API, a faulty one, too.
   * @param by who does it, for the record
   * @param check as with {@link put}
   * @returns false: the API has made no such rule
   */
  async remove(
    name: string,
    by: Requester,
    check: (etag: string | undefined) => void = () => undefined,
  ): Promise<boolean> {
    const { db } = this.#deps;
    const removed = await db.transaction("durable", async (tx) => {
      const etag = etagIn(await tx.all<Row>(LIST), name);
      if (etag === undefined) return 0;
      check(etag);
      await this.#record(tx, name, "removed", by);
      return tx.run("DELETE FROM replication_rules WHERE name = :name", { name });
    });
    await this.#read(db);
    return removed > 0;
  }

  async #record(tx: Writer, name: string, detail: string, by: Requester): Promise<void> {
    const event = { action: "access", outcome: "done", subject: `rule:${name}`, detail, by } as const;
    await this.#deps.journal.recordWithin(tx, [event]);
  }

  async #read(db: Reader): Promise<void> {
    this.#rows = await db.all<Row>(LIST);
    this.#deps.journal.recorded();
    for (const listener of this.#listeners) listener();
  }

  #look(): Judged {
    const of = this.#deps.config();
    if (this.#judged?.of !== of || this.#judged.rows !== this.#rows) {
      this.#judged = { ...judge(of, this.#rows), of, rows: this.#rows };
      this.#tell(this.#judged.faulty);
    }
    return this.#judged;
  }

  #tell(faulty: readonly FaultyRule[]): void {
    const text = JSON.stringify(faulty);
    if (text === this.#told) return;
    this.#told = text;
    for (const { name, faults } of faulty) {
      this.#deps.log.warn(
        { rule: name, faults: faultsText(faults) },
        "a rule of replication cannot be applied as the configuration is now: it does not run",
      );
    }
  }
}

/** Pure: which of the rules of the API, in this order, can be beside the configured ones. */
function judge({ registries, rules: configured }: Section, rows: readonly Row[]): Judged {
  const parsed = rows.map((row) => ({ row, ...parseReplicationRule(JSON.parse(row.rule)) }));
  const sound = parsed.flatMap(({ row, rule }) => (rule ? [{ row, rule }] : []));
  const faulty = parsed.flatMap(({ row, faults }) => (faults ? [{ name: row.name, faults }] : []));
  const found = replicationFaults({ registries, rules: [...configured, ...sound.map(({ rule }) => rule)] });
  const known = new Map(configured.map((rule) => [rule.name, knownRule(rule, "config", JSON.stringify(rule))]));
  for (const [index, { row, rule }] of sound.entries()) {
    const at = configured.length + index;
    const faults = found.filter(({ path }) => path[0] === "rules" && path[1] === at);
    if (faults.length === 0) known.set(row.name, knownRule(rule, "api", row.rule));
    else
      faulty.push({
        name: row.name,
        faults: faults.map(({ path, message, remedy }) => ({
          path: pathText(path.slice(2) as Path),
          cause: message,
          remedy,
        })),
      });
  }
  return { known, faulty };
}

function knownRule(rule: ReplicationRule, origin: KnownRule["origin"], text: string): KnownRule {
  return { rule, origin, etag: etagOf(text) };
}

function etagOf(text: string): string {
  return createHash("sha256").update(text).digest("base64url").slice(0, 22);
}

function etagIn(rows: readonly Row[], name: string): string | undefined {
  const row = rows.find((one) => one.name === name);
  return row && etagOf(row.rule);
}

/** @throws RuleRefused where it has another name of its own */
function withName(name: string, given: unknown): unknown {
  if (!isMapping(given)) return given;
  if (given["name"] !== undefined && given["name"] !== name) {
    const remedy = `leave it out, or write ${name}`;
    throw new RuleRefused(name, [{ path: "name", cause: "is another name than the address has", remedy }]);
  }
  return { ...given, name };
}

function faultsText(faults: readonly Fault[]): string {
  return faults.map(({ path, cause, remedy }) => `${path === "" ? "it" : path} ${cause}; ${remedy}`).join(". ");
}
