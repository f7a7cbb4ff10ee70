import { randomUUID } from "node:crypto";
import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Database } from "../db/database.ts";
import { algorithmOf, type Digest, type DigestAlgorithm } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { BlobStore } from "./blobs.ts";
import { DiskFault, Incoming, Interruption, type Room, type RunningHash } from "./incoming.ts";

/** A session: what a client uploads in one or several requests. */
export interface Upload {
  id: string;
  repository: RepositoryName;
  /** What the client is expected to prove the content with. */
  algorithm: DigestAlgorithm;
  /** How many bytes are here: the offset at which the client goes on. */
  sizeBytes: Bytes;
  startedAtMs: Milliseconds;
}

/** Where a client says that its bytes belong; what it did not say is undefined. */
export interface Placement {
  firstByte?: Bytes | undefined;
  lengthBytes?: Bytes | undefined;
}

/** Makes the row of a blob whose file is in place. It is run alone with the digest. */
export type RecordBlob = (sizeBytes: Bytes) => Promise<void>;

export interface UploadsDeps {
  db: Database;
  blobs: BlobStore;
  clock: Clock;
  room: Room;
  /** How long a session stays that nobody goes on with. */
  lifeMs: () => Milliseconds;
  log: Logger;
}

type Row = Pick<Upload, "repository" | "algorithm" | "startedAtMs">;

const ADD = `
  INSERT INTO uploads (id, repository, algorithm, started_at) VALUES (:id, :repository, :algorithm, :startedAtMs)`;
const FIND = `SELECT repository, algorithm, started_at AS "startedAtMs" FROM uploads WHERE id = :id`;
const LIST = `SELECT id, started_at AS "startedAtMs" FROM uploads`;
const REMOVE = "DELETE FROM uploads WHERE id = :id";

/** Hashes of sessions that wait for their next request; the oldest beyond it is forgotten, and made again from the file. */
const MAX_IDLE_HASHES = 1_000;

/** One request at work on a session. */
interface Turn {
  readonly interruption: Interruption;
  /** The session ends with this request, which does not heed its interruption any more. */
  final: boolean;
  readonly over: Promise<void>;
  leave(): void;
}

/**
 * Resumable uploads. A session is a row and a file; the size of the file is how far it has come, so nothing else has to be kept in step
 * with it. Either alone is harmless: a row without a file is a session at its start, a file without a row and without a request at work on it is what an earlier run left, and goes.
 *
 * One request at a time works on a session. A newer one takes over from an older one, whose client is usually long gone: the older is
 * interrupted, its bytes go to the disk, and the newer goes on after them. Only a request that already proves or publishes is let be.
 *
 * The hash of what is there waits in memory for the next request. Where it is not at hand (after a restart, or when the digest turns out
 * to be of another algorithm) the file is hashed once, at the end.
 *
 * A wrong digest or a fault of the disk ends the session and removes its file. A body that breaks off does not: what came can be resumed.
 */
export class Uploads implements AsyncDisposable {
  readonly #deps: UploadsDeps;
  readonly #turns = new Map<string, Turn>();
  readonly #idle = new Map<string, RunningHash>();
  #inProgress = 0;
  #stopping = false;

  constructor(deps: UploadsDeps) {
    this.#deps = deps;
  }

  /** Sessions that were begun and have not ended. Those of earlier runs count from the first {@link expire}. */
  get inProgress(): number {
    return this.#inProgress;
  }

  async start(repository: RepositoryName, algorithm: DigestAlgorithm): Promise<Upload> {
    const session = { id: randomUUID(), repository, algorithm, startedAtMs: this.#deps.clock.now() };
    // Lazy: a session that a power loss takes is begun anew.
    await this.#deps.db.transaction("lazy", async (tx) => {
      this.#inProgress += await tx.run(ADD, session);
    });
    return { ...session, sizeBytes: 0 };
  }

  /** @throws RegistryError BLOB_UPLOAD_UNKNOWN, also where the session is of another repository */
  async find(repository: RepositoryName, id: string): Promise<Upload> {
    await this.#row(repository, id);
    const turn = this.#turns.get(id);
    // Its file may be gone while its row is still there: that is not a session at its start.
    if (turn?.final) await turn.over;
    const row = await this.#row(repository, id);
    return { id, ...row, sizeBytes: (await this.#deps.blobs.uploadSize(id)) ?? 0 };
  }

  /**
   * Writes a body behind what is there. Where the body breaks off, what came of it is kept and its error goes on to the caller.
   * @param body is let go (`return()`) where it is not read to its end
   * @throws RegistryError BLOB_UPLOAD_UNKNOWN; BLOB_UPLOAD_INVALID where another request took over, with status 416 and `detail.offset`
   * where the bytes belong elsewhere; SIZE_INVALID where the body is longer or shorter than it says, nothing of it is kept;
   * UNAVAILABLE 507 and 503 where the disk is full or fails, the session is gone
   */
  async append(
    repository: RepositoryName,
    id: string,
    body: AsyncIterable<Buffer>,
    placement?: Placement,
  ): Promise<Upload> {
    return this.#inTurn(repository, id, (row, turn) =>
      this.#onFile(id, row.algorithm, turn, async (incoming) => {
        await take(incoming, body, placement);
        return { id, ...row, sizeBytes: incoming.sizeBytes };
      }),
    );
  }

  /**
   * Takes the last of the body, proves the content and publishes it: file, then row, alone with the digest. The session ends.
   * @param body undefined where all has come
   * @param record its error goes on to the caller; the file then stays, without a row
   * @throws RegistryError as {@link append}; DIGEST_INVALID where the content is another, the session is gone
   */
  async finish(
    repository: RepositoryName,
    id: string,
    digest: Digest,
    body: AsyncIterable<Buffer> | undefined,
    placement: Placement | undefined,
    record: RecordBlob,
  ): Promise<void> {
    await this.#inTurn(repository, id, (_row, turn) =>
      this.#onFile(id, algorithmOf(digest), turn, async (incoming) => {
        await take(incoming, body, placement);
        await this.#publish(incoming, digest, turn, record);
        // It is acknowledged as it is: a session that stays behind is at its start, and expires.
        await this.#removeRow(id).catch((error: unknown) =>
          this.#deps.log.warn({ id, err: error }, "an upload's row stayed"),
        );
      }),
    );
  }

  /**
   * Takes a whole blob in one request. There is nothing to resume, so there is no session, and nothing is left where it fails.
   * @throws RegistryError DIGEST_INVALID, SIZE_INVALID, UNAVAILABLE as {@link finish}
   */
  async receive(
    digest: Digest,
    body: AsyncIterable<Buffer>,
    lengthBytes: Bytes | undefined,
    record: RecordBlob,
  ): Promise<void> {
    const id = randomUUID();
    const turn = this.#enter(id);
    try {
      await this.#onFile(id, algorithmOf(digest), turn, async (incoming) => {
        await take(incoming, body, { lengthBytes });
        await this.#publish(incoming, digest, turn, record);
      });
    } catch (error) {
      await this.#tidy(id, () => this.#drop(id));
      throw error;
    } finally {
      turn.leave();
    }
  }

  /** @throws RegistryError BLOB_UPLOAD_UNKNOWN */
  async cancel(repository: RepositoryName, id: string): Promise<void> {
    await this.#inTurn(repository, id, async (_row, turn) => {
      turn.final = true;
      await this.#drop(id);
    });
  }

  /**
   * Removes sessions that nobody has gone on with for their life, and what an earlier run left of uploads without a session.
   * To be called at the start and once in a while.
   * @returns how many it removed
   */
  async expire(): Promise<number> {
    const { blobs, db, clock, lifeMs, log } = this.#deps;
    // Files first: a session's row is there before its file.
    const files = new Map((await blobs.uploads()).map((file) => [file.id, file]));
    // A read, which waits for nobody: a session that begins this very moment may be missing in the count until the next look.
    const rows = await db.all<{ id: string; startedAtMs: Milliseconds }>(LIST);
    this.#inProgress = rows.length;
    const nowMs = clock.now();
    const sessions = new Set(rows.map(({ id }) => id));
    const gone = [
      ...rows
        .filter(({ id, startedAtMs }) => nowMs - (files.get(id)?.modifiedAtMs ?? startedAtMs) >= lifeMs())
        .map(({ id }) => id),
      ...[...files.keys()].filter((id) => !sessions.has(id)),
    ].filter((id) => !this.#turns.has(id));
    // All at once, before any wait: none of them may be gone on with from here.
    const turns = gone.map((id) => this.#enter(id));
    for (const turn of turns) turn.final = true;
    try {
      for (const id of gone) await this.#drop(id);
    } finally {
      for (const turn of turns) turn.leave();
    }
    if (gone.length > 0) log.info({ uploads: gone.length }, "removed uploads that nobody went on with");
    return gone.length;
  }

  /** Interrupts what is under way, but for what is being published. What came is kept, and can be resumed. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping = true;
    const turns = [...this.#turns.values()];
    for (const { interruption } of turns) interruption.interrupt(stopping());
    await Promise.all(turns.map(({ over }) => over));
  }

  async #row(repository: RepositoryName, id: string): Promise<Row> {
    const row = await this.#deps.db.get<Row>(FIND, { id });
    if (row?.repository === repository) return row;
    throw new RegistryError(
      "BLOB_UPLOAD_UNKNOWN",
      `upload ${id.slice(0, 140)} is not known in ${repository}: it has ended, has expired or never was; begin a new one`,
    );
  }

  /** Takes over the session. */
  async #inTurn<T>(repository: RepositoryName, id: string, work: (row: Row, turn: Turn) => Promise<T>): Promise<T> {
    // First of all: another repository's client must not be able to disturb it.
    await this.#row(repository, id);
    const earlier = this.#turns.get(id);
    const turn = this.#enter(id);
    try {
      if (earlier) {
        earlier.interruption.interrupt(takenOver(id));
        await earlier.over;
      }
      const row = await this.#row(repository, id);
      turn.interruption.throwIfInterrupted();
      return await work(row, turn);
    } finally {
      turn.leave();
    }
  }

  #enter(id: string): Turn {
    if (this.#stopping) throw stopping();
    const over = Promise.withResolvers<void>();
    const turn: Turn = {
      interruption: new Interruption(),
      final: false,
      over: over.promise,
      leave: () => {
        if (this.#turns.get(id) === turn) this.#turns.delete(id);
        over.resolve();
      },
    };
    this.#turns.set(id, turn);
    return turn;
  }

  /** Opens the file for one request. The session is gone afterwards where the request was its last, or where the disk failed. */
  async #onFile<T>(
    id: string,
    algorithm: DigestAlgorithm,
    turn: Turn,
    work: (incoming: Incoming) => Promise<T>,
  ): Promise<T> {
    const { blobs, room } = this.#deps;
    const { staged, sizeBytes } = await blobs.stageUpload(id).catch((error: unknown) => {
      throw new DiskFault(error);
    });
    const incoming = new Incoming(staged, sizeBytes, this.#idle.get(id), {
      room,
      interruption: turn.interruption,
      algorithm,
    });
    this.#idle.delete(id);
    let over = false;
    try {
      return await work(incoming);
    } catch (error) {
      over = turn.final || error instanceof DiskFault;
      throw error;
    } finally {
      // First of all: on a full disk, the room that a file takes comes free only with its descriptor.
      await staged.close();
      if (over) await this.#tidy(id, () => this.#drop(id));
      else this.#remember(id, incoming.running);
    }
  }

  async #publish(incoming: Incoming, digest: Digest, turn: Turn, record: RecordBlob): Promise<void> {
    const actual = await incoming.digest(algorithmOf(digest));
    turn.interruption.throwIfInterrupted();
    turn.final = true;
    if (actual !== digest) {
      throw new RegistryError("DIGEST_INVALID", `what was sent is ${actual}, not ${digest} as the request says`, {
        detail: { expected: digest, actual },
      });
    }
    await this.#deps.blobs.exclusive([digest], async () => {
      await incoming.commit(digest);
      await record(incoming.sizeBytes);
    });
  }

  #remember(id: string, running: RunningHash | undefined): void {
    if (!running) return;
    this.#idle.set(id, running);
    for (const oldest of this.#idle.keys()) {
      if (this.#idle.size <= MAX_IDLE_HASHES) return;
      this.#idle.delete(oldest);
    }
  }

  /** The file first: its row may need the room that it takes. */
  async #drop(id: string): Promise<void> {
    this.#idle.delete(id);
    await this.#deps.blobs.removeUpload(id);
    await this.#removeRow(id);
  }

  async #removeRow(id: string): Promise<void> {
    await this.#deps.db.transaction("lazy", async (tx) => {
      this.#inProgress -= await tx.run(REMOVE, { id });
    });
  }

  /** Clears up after an error that the caller is told: what can't be removed now expires. */
  async #tidy(id: string, work: () => Promise<void>): Promise<void> {
    await work().catch((error: unknown) => this.#deps.log.warn({ id, err: error }, "an upload's leftovers stayed"));
  }
}

async function take(
  incoming: Incoming,
  body: AsyncIterable<Buffer> | undefined,
  placement: Placement | undefined,
): Promise<void> {
  const offset = incoming.sizeBytes;
  if (placement?.firstByte !== undefined && placement.firstByte !== offset) {
    throw new RegistryError(
      "BLOB_UPLOAD_INVALID",
      `the bytes begin at ${placement.firstByte}, the upload has come to ${offset}: go on from there`,
      { status: 416, detail: { offset } },
    );
  }
  if (body) await incoming.append(body, placement?.lengthBytes);
}

function takenOver(id: string): RegistryError {
  return new RegistryError("BLOB_UPLOAD_INVALID", `another request took over this upload (${id})`);
}

function stopping(): RegistryError {
  return new RegistryError("UNAVAILABLE", "the registry is stopping: what has come is kept, go on when it is back");
}
