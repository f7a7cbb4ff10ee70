import type { Milliseconds } from "../base/clock.ts";

/** What a run gets to know and may tell. */
export interface JobContext<Event> {
  readonly jobId: number;
  /** 1 is the first. */
  readonly attempt: number;
  /** Fires when the job is cancelled or paused and when the process stops: end soon, by throwing. */
  readonly signal: AbortSignal;
  /** Tells how far it is: to those who watch at once, to the row within a second. Waits for the slowest who watches, until the signal fires. */
  progress(event: Event): Promise<void>;
  /** Tells those who watch, and nobody else. */
  tell(event: Event): Promise<void>;
  /** Adds a line to the job's log: of the newest 1,000, 2,000 characters each are kept. */
  line(text: string): void;
}

/** How a run ended. */
export type Outcome<Result> =
  | { how: "done"; result: Result }
  /** Failed for the last time. */
  | { how: "dead"; error: unknown }
  /** Failed, and is tried again. */
  | { how: "failed"; error: unknown; runAtMs: Milliseconds }
  /** Asked to be run again then. */
  | { how: "later"; runAtMs: Milliseconds }
  | { how: "cancelled" }
  /** Somebody asked for a pause: it waits until it is resumed. */
  | { how: "paused" }
  /** The process stops; the job is queued again. */
  | { how: "stopped" };

/** Work of one kind. `Event` is what its runs tell while they go on. */
export interface JobKind<Payload extends object, Event, Result> {
  kind: string;
  /** Of what was stored, perhaps by an earlier release. @throws Error: the job is dead */
  parse: (payload: unknown) => Payload;
  /** So many run at a time. */
  concurrency: number;
  /** So many runs, then a failure is the last. */
  attempts: number;
  /** How long after failure number `attempt` (from 1) it is tried again, at most: jitter takes up to a half off. See {@link exponential}. */
  backoffMs: (attempt: number) => Milliseconds;
  /** @throws Hopeless: no further run; Later: run again then, at no cost; anything else: failed */
  run: (payload: Payload, context: JobContext<Event>) => Promise<Result>;
  /** Is told of the end of each run, and of a cancelled job that was waiting: once it is stored and before those who watch are. */
  ended?: (payload: Payload, outcome: Outcome<Result>, jobId: number) => void | Promise<void>;
}

/** Trying again would be in vain. */
export class Hopeless extends Error {
  override readonly name = "Hopeless";
}

/** Not now. */
export class Later extends Error {
  override readonly name = "Later";
  readonly atMs: Milliseconds;

  constructor(message: string, atMs: Milliseconds, options?: ErrorOptions) {
    super(message, options);
    this.atMs = atMs;
  }
}

/** A pause that doubles with every failure. */
export function exponential(firstMs: Milliseconds, mostMs: Milliseconds): (attempt: number) => Milliseconds {
  return (attempt) => Math.min(mostMs, firstMs * 2 ** (attempt - 1));
}
