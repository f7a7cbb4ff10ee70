import { RegistryError } from "../oci/errors.ts";
import type { JobQueue } from "./queue.ts";
import type { JobKind, JobRunner, Outcome } from "./runner.ts";

/** How a job tells what it does. Its last event says how it ended. */
export type Tell<Event> = (event: Event) => Promise<void>;

/** What a job tells. The last event is `done` or, where it did not come to its end, `failed`. */
export type Told<Event, Report> = Event | ({ type: "done" } & Report) | { type: "failed"; message: string };

export interface AttendedDeps<Payload extends object, Event, Report extends object> {
  queue: JobQueue;
  runner: JobRunner;
  /** As it is called in messages. */
  title: string;
  /** One at a time, and one attempt: whoever asks is told how it went. */
  kind: Omit<JobKind<Payload, Event, Report>, "concurrency" | "attempts" | "backoffMs">;
}

/** A kind of job of which one runs at a time, and whoever asks for it stays until its end. Schedules may add it, too, under {@link DEDUPE}. */
export class Attended<Payload extends object, Event, Report extends object> {
  readonly #deps: AttendedDeps<Payload, Event, Report>;
  #isAttended = false;

  constructor(deps: AttendedDeps<Payload, Event, Report>) {
    this.#deps = deps;
    deps.runner.register({ ...deps.kind, concurrency: 1, attempts: 1, backoffMs: () => 0 });
  }

  /** Whether somebody who asked for it is still here. */
  get isAttended(): boolean {
    return this.#isAttended;
  }

  /**
   * Runs one now, also where the runner was not started.
   * @param signal cancels it: whoever asked has left
   * @returns when it is over; never rejects: a failure is told
   * @throws RegistryError with status 409 at once, while another one runs
   */
  start(payload: Payload, tell: Tell<Told<Event, Report>>, signal: AbortSignal): Promise<void> {
    const { runner, kind } = this.#deps;
    if (this.#isAttended || runner.isRunning(kind.kind)) throw this.#conflict();
    this.#isAttended = true;
    return this.#attend(payload, tell, signal)
      .catch((error: unknown): Outcome<unknown> => ({ how: "dead", error }))
      .then((outcome) => tell(toldOf(outcome)))
      .finally(() => (this.#isAttended = false));
  }

  async #attend(payload: Payload, tell: Tell<Told<Event, Report>>, signal: AbortSignal): Promise<Outcome<unknown>> {
    const { runner, kind } = this.#deps;
    let id: number;
    let watching: Promise<Outcome<unknown>>;
    {
      using _held = runner.hold(kind.kind);
      id = await this.#add(payload);
      watching = runner.watch(id, (event) => tell(event as Event), new AbortController().signal);
    }
    let cancelled: Promise<unknown> | undefined;
    const cancel = (): void => void (cancelled = runner.cancel(id).catch(() => undefined));
    if (signal.aborted) cancel();
    signal.addEventListener("abort", cancel, { once: true });
    try {
      runner.begin(kind.kind);
      return await watching;
    } finally {
      signal.removeEventListener("abort", cancel);
      await cancelled;
    }
  }

  /** What waits since an earlier process gives way: it would do the same. */
  async #add(payload: Payload): Promise<number> {
    const { runner, queue, kind } = this.#deps;
    await runner.freed();
    const job = { kind: kind.kind, payload, dedupe: DEDUPE };
    const { id, joined } = await queue.add(job);
    if (!joined) return id;
    if (!(await runner.withdraw(id))) throw this.#conflict();
    return (await queue.add(job)).id;
  }

  #conflict(): RegistryError {
    return new RegistryError("UNAVAILABLE", `${this.#deps.title} is running already: wait for its end`, {
      status: 409,
    });
  }
}

/** The key of kinds of which one is unfinished at most. */
export const DEDUPE = "";

function toldOf<Report extends object>(outcome: Outcome<unknown>): Told<never, Report> {
  switch (outcome.how) {
    case "done":
      return { type: "done", ...(outcome.result as Report) };
    case "cancelled":
      return { type: "failed", message: "it was cancelled" };
    case "stopped":
      return { type: "failed", message: "the daemon was stopped: it begins anew when the daemon is back" };
    case "dead":
      return { type: "failed", message: (outcome.error as Error).message };
    default:
      throw new Error(`a watched job ended as ${outcome.how}`);
  }
}
