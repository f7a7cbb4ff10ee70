/** What a column holds. Booleans are 0 and 1, times are milliseconds since 1970. */
export type SqlValue = string | number | Buffer | null;
export type Params = Record<string, SqlValue>;

/**
 * SQL in the common ground of SQLite and PostgreSQL: `:name` parameters, ON CONFLICT, RETURNING.
 * A statement's text is its identity: it is prepared once, so texts are constants, never built from values.
 */
export interface Reader {
  get<Row>(sql: string, params?: Params): Promise<Row | undefined>;
  all<Row>(sql: string, params?: Params): Promise<Row[]>;
}

export interface Writer extends Reader {
  /** @returns the number of rows changed */
  run(sql: string, params?: Params): Promise<number>;
}

/**
 * `durable`: survives power loss once the promise resolves (after one sync of the disk, which those who wait together share). For what a
 * client was told is kept. Others may see it a moment earlier; whatever durable thing they build on it survives only together with it.
 * `lazy`: survives kill -9; power loss may take the last few. For what an upstream still has.
 */
export type Durability = "durable" | "lazy";

/** One transaction runs at a time: between two awaits of `work` nobody else's statement slips in. They are short and never span the network. */
export interface Transactions extends Reader {
  /**
   * Runs `work` in a transaction: commits when it resolves, rolls back when it rejects.
   * @throws what `work` throws; Error where the commit fails, or where a durable one was committed but the disk would not keep it
   */
  transaction<T>(durability: Durability, work: (tx: Writer) => Promise<T>): Promise<T>;
}

/** The contract of a metadata database. Reads see the last commit and never wait for a writer. */
export interface Database extends Transactions, AsyncDisposable {
  /** The same, for long work that nobody waits for: statements take longer to come back, and none of the event loop's time. */
  readonly background: Transactions;
}
