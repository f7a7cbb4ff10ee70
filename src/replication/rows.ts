import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Database, SqlValue, Writer } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import type { KnownCopy } from "./deletion.ts";
import type { RewriteMemory } from "./rewrite.ts";
import { laneOf } from "./tasks.ts";

export interface RuleState {
  /** Why it is paused; undefined: it is not. */
  paused: string | undefined;
  /** Its last run. */
  run: number | undefined;
  /** When a run has last seen every copy in step. */
  settledAtMs: Milliseconds | undefined;
}

/** A tag at a target, of which a rule knows what it has put there. */
export interface CopyPlace {
  rule: string;
  registry: string;
  repository: RepositoryName;
  tag: Tag;
}

export interface CopyMade extends CopyPlace {
  /** At the target. */
  digest: Digest;
  source: RepositoryName;
  sourceDigest: Digest;
  /** What the tag led to before. Where it was not there, it is the rule's own. */
  was: Digest | undefined;
}

/** A tag that a run has moved, or is about to. */
export interface Move {
  registry: string;
  repository: RepositoryName;
  tag: Tag;
  /** Undefined: it was not there. */
  was: Digest | undefined;
  became: Digest;
}

/** How long an index that was rewritten is remembered. */
const REWRITES_MS: Milliseconds = 90 * 86_400_000;

/** When a tag was put that is only about to be. */
const NOT_YET_MS: Milliseconds = 0;
const PUT = `INSERT INTO replication_copies (rule, registry, repository, tag, digest, source, source_digest, owned, copied_at)
  VALUES (:rule, :registry, :repository, :tag, :digest, :source, :sourceDigest, :owned, :nowMs)
  ON CONFLICT (rule, registry, repository, tag)`;

const KNOWN = { paused: undefined, run: undefined, settledAtMs: undefined };

/** What replication remembers beside its jobs. */
export class ReplicationRows implements RewriteMemory {
  readonly #db: Database;
  readonly #clock: Clock;

  constructor(db: Database, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  // ---- rules ----

  async state(rule: string): Promise<RuleState> {
    const row = await this.#db.get<{ paused: string | null; run: number | null; settledAtMs: Milliseconds | null }>(
      `SELECT paused, run, settled_at AS "settledAtMs" FROM replication_states WHERE rule = :rule`,
      { rule },
    );
    if (!row) return KNOWN;
    const { paused, run, settledAtMs } = row;
    return { paused: paused ?? undefined, run: run ?? undefined, settledAtMs: settledAtMs ?? undefined };
  }

  /** @param why undefined: it goes on */
  async pause(rule: string, why: string | undefined): Promise<void> {
    await this.#db.transaction("durable", (tx) =>
      tx.run(
        `INSERT INTO replication_states (rule, paused) VALUES (:rule, :why)
         ON CONFLICT (rule) DO UPDATE SET paused = excluded.paused`,
        { rule, why: why ?? null },
      ),
    );
  }

  async pausedRules(reader: Pick<Writer, "all"> = this.#db): Promise<ReadonlySet<string>> {
    const rows = await reader.all<{ rule: string }>("SELECT rule FROM replication_states WHERE paused IS NOT NULL");
    return new Set(rows.map(({ rule }) => rule));
  }

  async runBegan(rule: string, run: number): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `INSERT INTO replication_states (rule, run, run_at) VALUES (:rule, :run, :nowMs)
         ON CONFLICT (rule) DO UPDATE SET run = excluded.run, run_at = excluded.run_at`,
        { rule, run, nowMs: this.#clock.now() },
      ),
    );
  }

  /** @param atMs when the run began that saw every copy in step */
  async settled(rule: string, atMs: Milliseconds): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run("UPDATE replication_states SET settled_at = :atMs WHERE rule = :rule", { rule, atMs }),
    );
  }

  // ---- copies ----

  /** Notes that a tag is about to be put where none is: whoever is killed before {@link copied} knows it afterwards. */
  async copying(copy: CopyMade): Promise<void> {
    await this.#db.transaction("lazy", (tx) => tx.run(`${PUT} DO NOTHING`, { ...putOf(copy), nowMs: NOT_YET_MS }));
  }

  /** Takes back {@link copying} of a tag that was not put. */
  async forgetCopying({ rule, registry, repository, tag }: CopyPlace): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `DELETE FROM replication_copies WHERE copied_at = ${NOT_YET_MS}
           AND rule = :rule AND registry = :registry AND repository = :repository AND tag = :tag`,
        { rule, registry, repository, tag },
      ),
    );
  }

  /** What was about to be put stays others' where others were faster. */
  async copied(copy: CopyMade): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `${PUT} DO UPDATE SET
           owned = CASE WHEN copied_at = ${NOT_YET_MS} AND :was <> digest THEN 0 ELSE owned END,
           digest = excluded.digest, source = excluded.source, source_digest = excluded.source_digest,
           copied_at = excluded.copied_at, gone_since = NULL`,
        { ...putOf(copy), was: copy.was ?? null, nowMs: this.#clock.now() },
      ),
    );
  }

  /** What a rule knows of one repository of a target. */
  async copiesAt(rule: string, registry: string, repository: RepositoryName): Promise<KnownCopy[]> {
    const rows = await this.#db.all<{ tag: Tag; digest: Digest; owned: number; goneSinceMs: Milliseconds | null }>(
      `SELECT tag, digest, owned, gone_since AS "goneSinceMs" FROM replication_copies
       WHERE rule = :rule AND registry = :registry AND repository = :repository ORDER BY tag`,
      { rule, registry, repository },
    );
    return rows.map(({ owned, goneSinceMs, ...row }) => ({
      ...row,
      owned: owned === 1,
      goneSinceMs: goneSinceMs ?? undefined,
    }));
  }

  /** Tags there that other rules have put. */
  async othersAt(rule: string, registry: string, repository: RepositoryName): Promise<Tag[]> {
    const rows = await this.#db.all<{ tag: Tag }>(
      `SELECT DISTINCT tag FROM replication_copies
       WHERE registry = :registry AND repository = :repository AND rule <> :rule`,
      { rule, registry, repository },
    );
    return rows.map(({ tag }) => tag);
  }

  /** Notes since when the source is without some tags, and that it has others again. */
  async missed(
    { rule, registry, repository }: Omit<CopyPlace, "tag">,
    missed: readonly { tag: Tag; digest: Digest }[],
    back: readonly Tag[],
  ): Promise<void> {
    const at = { rule, registry, repository };
    const nowMs = this.#clock.now();
    await this.#db.transaction("lazy", async (tx) => {
      for (const { tag, digest } of missed) {
        await tx.run(
          `INSERT INTO replication_copies
             (rule, registry, repository, tag, digest, source, source_digest, owned, copied_at, gone_since)
           VALUES (:rule, :registry, :repository, :tag, :digest, '', :digest, 0, :nowMs, :nowMs)
           ON CONFLICT (rule, registry, repository, tag) DO UPDATE SET gone_since = excluded.gone_since`,
          { ...at, tag, digest, nowMs },
        );
      }
      for (const tag of back) {
        await tx.run(
          `UPDATE replication_copies SET gone_since = NULL
           WHERE rule = :rule AND registry = :registry AND repository = :repository AND tag = :tag`,
          { ...at, tag },
        );
      }
    });
  }

  async forget({ rule, registry, repository, tag }: CopyPlace): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `DELETE FROM replication_copies
         WHERE rule = :rule AND registry = :registry AND repository = :repository AND tag = :tag`,
        { rule, registry, repository, tag },
      ),
    );
  }

  /** Tags of a repository of a target for which a rule had a task, lately, that was told that its source led to `digest`. */
  async tagsOf({ rule, registry, repository }: Omit<CopyPlace, "tag">, digest: Digest): Promise<Tag[]> {
    const rows = await this.#db.all<{ tag: Tag }>(
      `SELECT DISTINCT payload ->> 'tag' AS tag FROM jobs
       WHERE kind = :kind AND subject >= :first AND subject < :beyond
         AND payload ->> 'rule' = :rule AND payload ->> 'digest' = :digest AND payload ->> 'tag' IS NOT NULL`,
      // The next character after a colon.
      {
        kind: laneOf(registry),
        first: `${registry} ${repository}:`,
        beyond: `${registry} ${repository};`,
        rule,
        digest,
      },
    );
    return rows.map(({ tag }) => tag);
  }

  // ---- rewritten indexes ----

  async rewritten(source: Digest, platforms: readonly string[]): Promise<Digest | undefined> {
    const row = await this.#db.get<{ digest: Digest }>(
      "SELECT digest FROM replication_rewrites WHERE source = :source AND platforms = :platforms",
      { source, platforms: platforms.toSorted().join(" ") },
    );
    return row?.digest;
  }

  async remember(source: Digest, platforms: readonly string[], digest: Digest): Promise<void> {
    const nowMs = this.#clock.now();
    await this.#db.transaction("lazy", async (tx) => {
      await tx.run(
        `INSERT INTO replication_rewrites (source, platforms, digest, at) VALUES (:source, :platforms, :digest, :nowMs)
         ON CONFLICT (source, platforms) DO UPDATE SET at = excluded.at`,
        { source, platforms: platforms.toSorted().join(" "), digest, nowMs },
      );
      // What is asked for after that is read once more.
      await tx.run("DELETE FROM replication_rewrites WHERE at < :beforeMs", { beforeMs: nowMs - REWRITES_MS });
    });
  }

  // ---- moves ----

  /** Notes what tags led to, before they move. What an earlier try has noted is less true, unless it was that which has moved them. */
  async moving(run: number, moves: readonly Move[]): Promise<void> {
    const nowMs = this.#clock.now();
    await this.#db.transaction("durable", async (tx) => {
      for (const { registry, repository, tag, was, became } of moves) {
        await tx.run(
          `INSERT INTO replication_moves (run, registry, repository, tag, was, became, at)
           VALUES (:run, :registry, :repository, :tag, :was, :became, :nowMs)
           ON CONFLICT (run, registry, repository, tag) DO UPDATE SET
             was = CASE WHEN excluded.was = became AND undone_at IS NULL THEN was ELSE excluded.was END,
             became = excluded.became, undone_at = NULL`,
          { run, registry, repository, tag, was: was ?? null, became, nowMs },
        );
      }
    });
  }

  /** Those of a run that have not been taken back. */
  async moves(run: number): Promise<Move[]> {
    const rows = await this.#db.all<Omit<Move, "was"> & { was: Digest | null }>(
      `SELECT registry, repository, tag, was, became FROM replication_moves
       WHERE run = :run AND undone_at IS NULL ORDER BY registry, repository, tag`,
      { run },
    );
    return rows.map(({ was, ...row }) => ({ ...row, was: was ?? undefined }));
  }

  async undone(run: number, { registry, repository, tag }: Move): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run(
        `UPDATE replication_moves SET undone_at = :nowMs
         WHERE run = :run AND registry = :registry AND repository = :repository AND tag = :tag`,
        { run, registry, repository, tag, nowMs: this.#clock.now() },
      ),
    );
  }

  /** Forgets what runs before that have moved. */
  async forgetMoves(beforeMs: Milliseconds): Promise<void> {
    await this.#db.transaction("lazy", (tx) =>
      tx.run("DELETE FROM replication_moves WHERE at < :beforeMs", { beforeMs }),
    );
  }
}

function putOf({
  rule,
  registry,
  repository,
  tag,
  digest,
  source,
  sourceDigest,
  was,
}: CopyMade): Record<string, SqlValue> {
  return { rule, registry, repository, tag, digest, source, sourceDigest, owned: was === undefined ? 1 : 0 };
}
