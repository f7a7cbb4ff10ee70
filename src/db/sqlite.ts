import { chmod, open, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import Sqlite from "better-sqlite3";
import { Background, type TransactionWriter } from "./background.ts";
import { Checkpointer } from "./checkpoint.ts";
import type { Database, Durability, Params, Reader, Transactions, Writer } from "./database.ts";
import { LogSync } from "./log-sync.ts";
import { MIGRATIONS } from "./migrations.ts";

/** How long a transaction waits for another process (a backup, a shell) to let go of the database. */
const PATIENCE_MS = 1_000;
const PAUSE_MS = 10;

/** One connection with its statements, each prepared at its first use. */
class Connection implements TransactionWriter {
  readonly #db: Sqlite.Database;
  readonly #statements = new Map<string, Sqlite.Statement>();

  constructor(db: Sqlite.Database) {
    this.#db = db;
  }

  #prepare(sql: string): Sqlite.Statement {
    let statement = this.#statements.get(sql);
    if (!statement) {
      statement = this.#db.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }

  async get<Row>(sql: string, params: Params = {}): Promise<Row | undefined> {
    return this.#prepare(sql).get(params) as Row | undefined;
  }

  async all<Row>(sql: string, params: Params = {}): Promise<Row[]> {
    return this.#prepare(sql).all(params) as Row[];
  }

  async run(sql: string, params: Params = {}): Promise<number> {
    return this.#prepare(sql).run(params).changes;
  }

  async exec(sql: string): Promise<void> {
    this.#db.exec(sql);
  }

  close(): void {
    this.#db.close();
  }
}

/**
 * SQLite through better-sqlite3: one connection reads, another writes, two more do both for long work in a thread, another thread moves the write-ahead log into the database file.
 * A commit appends to the log; a durable one then waits until the log is on the disk, and the next transaction need not wait for that.
 */
class SqliteDatabase implements Database {
  readonly background: Transactions;
  readonly #reader: Reader & Connection;
  readonly #writer: Connection;
  readonly #background: Background;
  readonly #checkpointer: Checkpointer;
  readonly #log: LogSync;
  /** Another process has held the database for longer than our patience: nobody waits again until it lets go. */
  #held = false;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(reader: Connection, writer: Connection, log: LogSync, file: string) {
    this.#reader = reader;
    this.#writer = writer;
    this.#log = log;
    this.#background = new Background(file);
    this.background = {
      get: (sql, params) => this.#background.get(sql, params),
      all: (sql, params) => this.#background.all(sql, params),
      transaction: (durability, work) => this.#transaction(durability, () => this.#background.writer(), work),
    };
    this.#checkpointer = new Checkpointer(file, (work) => this.#alone(work));
  }

  get<Row>(sql: string, params?: Params): Promise<Row | undefined> {
    return this.#reader.get<Row>(sql, params);
  }

  all<Row>(sql: string, params?: Params): Promise<Row[]> {
    return this.#reader.all<Row>(sql, params);
  }

  transaction<T>(durability: Durability, work: (tx: Writer) => Promise<T>): Promise<T> {
    return this.#transaction(durability, () => this.#writer, work);
  }

  async #transaction<T>(
    durability: Durability,
    writer: () => TransactionWriter,
    work: (tx: Writer) => Promise<T>,
  ): Promise<T> {
    const deadlineMs = performance.now() + PATIENCE_MS;
    const result = await this.#alone(() => this.#run(writer(), work, deadlineMs));
    if (durability === "durable") await this.#log.reach();
    return result;
  }

  #alone<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#queue.then(work);
    this.#queue = turn.catch(() => undefined);
    return turn;
  }

  async #run<T>(writer: TransactionWriter, work: (tx: Writer) => Promise<T>, deadlineMs: number): Promise<T> {
    await this.#begin(writer, deadlineMs);
    try {
      const result = await work(writer);
      await writer.exec("COMMIT");
      this.#checkpointer.written();
      return result;
    } catch (error) {
      // A full disk may have rolled back already; then this fails and the first error is the one to tell.
      try {
        await writer.exec("ROLLBACK");
      } catch {}
      throw error;
    }
  }

  /** Waits here, not inside SQLite: that would hold the event loop, and with it every pull. */
  async #begin(writer: TransactionWriter, deadlineMs: number): Promise<void> {
    for (;;) {
      try {
        await writer.exec("BEGIN IMMEDIATE");
        this.#held = false;
        return;
      } catch (error) {
        const busy = (error as NodeJS.ErrnoException).code === "SQLITE_BUSY";
        if (!busy || this.#held || performance.now() > deadlineMs) {
          this.#held = busy;
          throw error;
        }
      }
      await delay(PAUSE_MS);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#checkpointer.close();
    await this.#queue;
    await this.#background.close();
    await this.#log[Symbol.asyncDispose]();
    this.#reader.close();
    this.#writer.close();
  }
}

/**
 * Opens or creates the database and brings its schema up to date.
 * @throws Error where the file is no database, or was written by a newer version
 */
export async function openSqlite(file: string): Promise<Database> {
  await keepPrivate(file);
  const writer = new Sqlite(file);
  try {
    writer.pragma("journal_mode = WAL");
    // Durable transactions sync the log themselves: within a commit it would hold the event loop.
    writer.pragma("synchronous = NORMAL");
    writer.pragma("foreign_keys = ON");
    writer.pragma("busy_timeout = 5000");
    // A checkpoint inside a commit would hold the event loop for its fsyncs (5 to 50 ms): the worker does it.
    writer.pragma("wal_autocheckpoint = 0");
    // What was moved is written over; the file shrinks back to this when that begins.
    writer.pragma("journal_size_limit = 1048576");
    migrate(writer, file);
    writer.pragma("busy_timeout = 0");
    const reader = new Sqlite(file, { readonly: true });
    reader.pragma("mmap_size = 268435456");
    const log = await LogSync.open(file);
    return new SqliteDatabase(new Connection(reader), new Connection(writer), log, file);
  } catch (error) {
    writer.close();
    throw error;
  }
}

/** It holds keys that tokens are signed with: for its owner's eyes alone. The files beside it get its mode as SQLite makes them. */
async function keepPrivate(file: string): Promise<void> {
  await (await open(file, "a", 0o600)).close();
  for (const path of [file, `${file}-wal`, `${file}-shm`]) {
    try {
      if (((await stat(path)).mode & 0o077) !== 0) await chmod(path, 0o600);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      // EPERM: the file is another's, or its file system has no modes. Whoever set that up has decided who reads it.
      if (code !== "ENOENT" && code !== "EPERM") throw error;
    }
  }
}

function migrate(db: Sqlite.Database, file: string): void {
  const version = db.pragma("user_version", { simple: true }) as number;
  if (version > MIGRATIONS.length) {
    throw new Error(
      `${file} has schema version ${version}, this program knows ${MIGRATIONS.length}: start the newer release, or restore a backup`,
    );
  }
  db.transaction(() => {
    for (const sql of MIGRATIONS.slice(version)) db.exec(sql);
    db.pragma(`user_version = ${MIGRATIONS.length}`);
  }).immediate();
}
