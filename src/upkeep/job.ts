import { RegistryError } from "../oci/errors.ts";

/** How a job tells what it does. Its last event says how it ended. */
export type Tell<Event> = (event: Event) => Promise<void>;

/** What a job tells. The last event is `done` or, where it did not come to its end, `failed`. */
export type Told<Event, Report> = Event | ({ type: "done" } & Report) | { type: "failed"; message: string };

export interface JobDeps<Options, Event, Report> {
  /** As it is called in messages. */
  name: string;
  /** @throws the signal's reason; what it throws is told */
  work: (options: Options, tell: Tell<Event>, signal: AbortSignal) => Promise<Report>;
  /** Notes how a run went: with its report, or why there is none. */
  ended: (options: Options, outcome: { report: Report } | { error: unknown; stopped: boolean }) => Promise<void>;
}

/** Work on all that is stored: one run at a time, which ends when the daemon stops. */
export class Job<Options, Event, Report extends object> {
  readonly #deps: JobDeps<Options, Event, Report>;
  readonly #stop = new AbortController();
  #running: Promise<void> | undefined;

  constructor(deps: JobDeps<Options, Event, Report>) {
    this.#deps = deps;
  }

  get isRunning(): boolean {
    return this.#running !== undefined;
  }

  /**
   * Starts a run.
   * @param signal ends it before its time
   * @returns when it is over; never rejects: a failure is told
   * @throws RegistryError with status 409 at once, while another one runs
   */
  start(options: Options, tell: Tell<Told<Event, Report>>, signal: AbortSignal): Promise<void> {
    if (this.#running) {
      throw new RegistryError("UNAVAILABLE", `${this.#deps.name} is running already: wait for its end`, {
        status: 409,
      });
    }
    const running = this.#run(options, tell, AbortSignal.any([signal, this.#stop.signal])).finally(
      () => (this.#running = undefined),
    );
    this.#running = running;
    return running;
  }

  async #run(options: Options, tell: Tell<Told<Event, Report>>, signal: AbortSignal): Promise<void> {
    const { work, ended } = this.#deps;
    try {
      signal.throwIfAborted();
      const report = await work(options, tell, signal);
      await ended(options, { report });
      await tell({ type: "done", ...report });
    } catch (error) {
      await ended(options, { error, stopped: signal.aborted });
      await tell({ type: "failed", message: signal.aborted ? "it was stopped" : (error as Error).message });
    }
  }

  /** Ends the run that is under way, and lets no other one begin. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }
}
