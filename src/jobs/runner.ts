import PQueue from "p-queue";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import { exponential, Hopeless, Later, type JobContext, type JobKind, type Outcome } from "./kind.ts";
import { Ended, endingOf, endOf, isLast, messageOf, type RunEnd } from "./endings.ts";
import { Notes } from "./notes.ts";
import type { Claim, Job, JobQueue } from "./queue.ts";
import { Watchers, type Tell } from "./watchers.ts";

export { exponential, Hopeless, Later, type JobContext, type JobKind, type Outcome } from "./kind.ts";

export interface JobRunnerDeps {
  queue: JobQueue;
  clock: Clock;
  log: Logger;
  metrics: Metrics;
}

const LEASE_MS: Milliseconds = 60_000;
const HEARTBEAT_MS: Milliseconds = 15_000;
/** Timers reach no further than 24 days, and a clock may jump. */
const LOOK_EVERY_MS: Milliseconds = 60_000;
const NOTE_EVERY_MS: Milliseconds = 1_000;
/** Between two tries while the database refuses. */
const pauseMs = exponential(1_000, 30_000);
/** A run that so often ended with its process, beyond its attempts, is what ends it. */
const MOST_CRASHES = 3;

interface Run {
  readonly claim: Claim;
  readonly abort: AbortController;
  readonly notes: Notes;
  /** Ends the pause between two writes of notes. */
  readonly over: AbortController;
  writing: Promise<void> | undefined;
}

type AnyKind = JobKind<object, unknown, unknown>;

interface Lane {
  readonly kind: AnyKind;
  readonly queue: PQueue;
  sleeping: AbortController;
  pump: Promise<void> | undefined;
  /** So many keep jobs from beginning. */
  holds: number;
}

/**
 * Runs what is queued, each kind in a lane of its own: so many at a time, by priority, as soon as it is due.
 *
 * - A failure is tried again after a growing pause, until the attempts of its kind are used up; then the job is dead.
 * - Stopping ends the runs and queues their jobs again, at no cost. A process that is killed leaves its leases behind: the next one on this
 *   storage frees them at its start. That costs an attempt but does not make the job dead, unless it happens again and again.
 * - While the database refuses, nothing new begins and what has ended waits to be written; the runner goes on later.
 */
export class JobRunner {
  readonly #deps: JobRunnerDeps;
  readonly #lanes = new Map<string, Lane>();
  readonly #running = new Map<number, Run>();
  readonly #watchers = new Watchers();
  readonly #stopping = new AbortController();
  #started = false;
  #freed: Promise<void> | undefined;
  #heartbeat: Promise<void> | undefined;

  constructor(deps: JobRunnerDeps) {
    this.#deps = deps;
  }

  /** Jobs of a kind that nobody registers stay queued. */
  register<Payload extends object, Event, Result>(kind: JobKind<Payload, Event, Result>): void {
    if (this.#lanes.has(kind.kind)) throw new Error(`the job kind ${kind.kind} is registered twice`);
    const lane: Lane = {
      kind: kind as unknown as AnyKind,
      queue: new PQueue({ concurrency: kind.concurrency }),
      sleeping: new AbortController(),
      pump: undefined,
      holds: 0,
    };
    this.#lanes.set(kind.kind, lane);
    if (this.#started) this.begin(kind.kind);
  }

  /** Brings the gauges up to date: only of registered kinds, so that labels are bounded. */
  async expose(): Promise<void> {
    const { queue, metrics } = this.#deps;
    const counts = await queue.counts();
    for (const kind of this.#lanes.keys()) {
      for (const state of ["queued", "running", "paused", "dead"] as const) {
        const found = counts.find((count) => count.kind === kind && count.state === state);
        metrics.jobs.set({ kind, state }, found?.jobs ?? 0);
      }
    }
  }

  /** Runs jobs of every kind from now on. */
  start(): void {
    this.#started = true;
    for (const kind of this.#lanes.keys()) this.begin(kind);
  }

  /** Runs jobs of one kind from now on. */
  begin(kind: string): void {
    const lane = this.#lane(kind);
    if (this.#stopping.signal.aborted) return;
    this.#heartbeat ??= this.#beat();
    lane.pump ??= this.#pump(lane);
    this.wake(kind);
  }

  /** Until it is disposed of, no job of a kind begins that is added from now on: whoever adds one can watch from its first event. */
  hold(kind: string): Disposable {
    const lane = this.#lane(kind);
    lane.holds++;
    return {
      [Symbol.dispose]: () => {
        lane.holds--;
        lane.sleeping.abort();
      },
    };
  }

  #lane(kind: string): Lane {
    const lane = this.#lanes.get(kind);
    if (!lane) throw new Error(`there is no job kind ${kind}`);
    return lane;
  }

  /** Looks at once whether something is due: after something was added. */
  wake(kind?: string): void {
    for (const lane of this.#lanes.values()) if (kind === undefined || lane.kind.kind === kind) lane.sleeping.abort();
  }

  /** Resolves once what an earlier process was running is queued again, or the runner stops. */
  freed(): Promise<void> {
    return (this.#freed ??= this.#insist("free the jobs of an earlier process", () => this.#deps.queue.free()).then(
      (freed) => {
        if (freed) this.#deps.log.warn({ jobs: freed }, "jobs that ended with an earlier process run again");
      },
    ));
  }

  /**
   * Tells what a job tells, from now until its end, through all its attempts.
   * @param tell the job waits for it, so it comes back at once when the signal fires; what it throws ends the watching
   * @returns how it ended: never `failed`, `later` or `paused`. What ended earlier is read from its row
   * @throws RangeError: there is no such job; the signal's reason
   */
  watch(id: number, tell: Tell, signal: AbortSignal): Promise<Outcome<unknown>> {
    return this.#watchers.watch(id, tell, signal, async () => {
      const job = await this.#deps.queue.get(id);
      if (!job) throw new RangeError(`there is no job ${id}`);
      return endOf(job) ?? (this.#stopping.signal.aborted ? { how: "stopped" } : undefined);
    });
  }

  /**
   * Cancels what is queued or paused, and ends what runs.
   * @returns `running`: it is told to end; undefined: there is no unfinished job with this id
   */
  async cancel(id: number): Promise<"cancelled" | "running" | undefined> {
    const run = this.#running.get(id);
    // First, and even if the row can't be written.
    run?.abort.abort(new Ended("cancelled"));
    const found = await this.#deps.queue.cancel(id);
    if (found === "cancelled") {
      const job = await this.#deps.queue.get(id);
      if (job) await this.#tellCancelled(job);
    }
    if (found === "running") this.#endRun(id, "cancelled");
    return run ? "running" : found;
  }

  /** Does the same with all parts of a job, for whoever ends with it. @returns the ids of those that were unfinished */
  async cancelPart(parent: number): Promise<number[]> {
    const { cancelled, asked } = await this.#deps.queue.cancelPart(parent);
    for (const id of asked) this.#endRun(id, "cancelled");
    for (const job of cancelled) await this.#tellCancelled(job);
    return [...cancelled.map(({ id }) => id), ...asked];
  }

  /**
   * Pauses what is queued, and ends a run at no cost: its job is paused with that. {@link JobQueue.resume} takes it back.
   * @returns `running`: it is told to end; undefined: it is neither queued nor running, or was cancelled
   */
  async pause(id: number): Promise<"paused" | "running" | undefined> {
    const found = await this.#deps.queue.pause(id);
    if (found === "running") this.#endRun(id, "paused");
    return found;
  }

  #endRun(id: number, how: Ended["how"]): void {
    this.#running.get(id)?.abort.abort(new Ended(how));
  }

  /** Cancels what is queued or paused, and nothing that runs. @returns whether it was */
  async withdraw(id: number): Promise<boolean> {
    const withdrawn = await this.#deps.queue.withdraw(id);
    if (withdrawn) this.#watchers.settle(id, { how: "cancelled" });
    return withdrawn;
  }

  /** Whether this process runs a job of a kind. */
  isRunning(kind: string): boolean {
    for (const { claim } of this.#running.values()) if (claim.job.kind === kind) return true;
    return false;
  }

  /** Ends all runs and queues their jobs again. Nothing begins afterwards. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.wake();
    for (const { abort } of this.#running.values()) abort.abort(new Ended("stopped"));
    for (const { pump, queue } of this.#lanes.values()) {
      await pump;
      await queue.onIdle();
    }
    await this.#heartbeat;
    await this.#freed;
    this.#watchers.settleAll({ how: "stopped" });
  }

  async #pump(lane: Lane): Promise<void> {
    const { queue, clock } = this.#deps;
    await this.freed();
    for (let refusals = 0; !this.#stopping.signal.aborted;) {
      lane.sleeping = new AbortController();
      let waitMs = LOOK_EVERY_MS;
      try {
        // Where the lane is full, the end of a run wakes it.
        if (await this.#fill(lane)) {
          const nextAtMs = await queue.nextAtMs(lane.kind.kind);
          if (nextAtMs !== undefined) waitMs = Math.min(waitMs, Math.max(0, nextAtMs - clock.now()));
        }
        refusals = 0;
      } catch (error) {
        this.#refused("claim", error);
        waitMs = pauseMs(++refusals);
      }
      await clock.sleep(waitMs, lane.sleeping.signal).catch(() => undefined);
    }
  }

  /** @returns whether there is room for more, and nothing is due */
  async #fill(lane: Lane): Promise<boolean> {
    const { queue } = this.#deps;
    while (lane.queue.pending < lane.kind.concurrency) {
      // Transactions take their turns: a claim that is under way does not see what is added after this look.
      if (lane.holds > 0 || this.#stopping.signal.aborted) return false;
      const claim = await queue.claim(lane.kind.kind, LEASE_MS);
      if (!claim) return true;
      const run: Run = {
        claim,
        abort: new AbortController(),
        notes: new Notes(),
        over: new AbortController(),
        writing: undefined,
      };
      this.#running.set(claim.job.id, run);
      // It was claimed while the runner stopped.
      if (this.#stopping.signal.aborted) run.abort.abort(new Ended("stopped"));
      void lane.queue.add(() => this.#execute(lane.kind, run)).then(() => lane.sleeping.abort());
    }
    return false;
  }

  /** Never rejects. */
  async #execute(kind: AnyKind, run: Run): Promise<void> {
    const { log, metrics } = this.#deps;
    const { job } = run.claim;
    let payload: object | undefined;
    let end: RunEnd;
    try {
      // First: the end is told with it, whatever that is.
      payload = parsed(kind, job.payload);
      run.abort.signal.throwIfAborted();
      if (job.attempts > kind.attempts + MOST_CRASHES)
        throw new Hopeless(`the process ended in the middle of each of its ${job.attempts - 1} runs`);
      end = { how: "done", result: await kind.run(payload, this.#contextOf(run)) };
    } catch (error) {
      end = this.#failed(kind, run, error);
    }
    run.over.abort();
    await run.writing;
    end = await this.#store(run, end);
    this.#running.delete(job.id);
    if (end.how === "lost") {
      log.warn({ kind: kind.kind, job: job.id }, "a job's lease was lost, and its run ended");
      return;
    }
    metrics.jobRuns.inc({ kind: kind.kind, result: end.how });
    if (end.how === "dead") log.error({ kind: kind.kind, job: job.id, err: end.error }, "job failed");
    if (end.how === "failed")
      log.warn({ kind: kind.kind, job: job.id, err: end.error }, "job failed, and is tried again");
    if (payload) await this.#ended(kind, payload, end, job.id);
    if (isLast(end)) this.#watchers.settle(job.id, end);
  }

  /** Never rejects. */
  async #ended(kind: AnyKind, payload: object, end: Outcome<unknown>, jobId: number): Promise<void> {
    try {
      await kind.ended?.(payload, end, jobId);
    } catch (error) {
      this.#deps.log.warn({ operation: `note the end of ${kind.kind}`, err: error }, "upkeep failed in part");
    }
  }

  /** To its kind and to those who watch, of a job that was waiting. */
  async #tellCancelled({ id, kind: name, payload: stored }: Job): Promise<void> {
    const kind = this.#lanes.get(name)?.kind;
    let payload: object | undefined;
    try {
      payload = kind && parsed(kind, stored);
    } catch {
      // Its kind would not know what this is about.
    }
    if (kind && payload) await this.#ended(kind, payload, { how: "cancelled" }, id);
    this.#watchers.settle(id, { how: "cancelled" });
  }

  #failed(kind: AnyKind, { claim: { job }, abort }: Run, error: unknown): RunEnd {
    const { reason } = abort.signal as { reason: unknown };
    if (reason instanceof Ended) return { how: reason.how };
    if (error instanceof Later) return { how: "later", runAtMs: error.atMs };
    if (error instanceof Hopeless || job.attempts >= kind.attempts) return { how: "dead", error };
    const waitMs = kind.backoffMs(job.attempts) * (1 - Math.random() / 2);
    return { how: "failed", error, runAtMs: Math.ceil(this.#deps.clock.now() + waitMs) };
  }

  /** @returns what has become of it */
  async #store({ claim, notes }: Run, end: RunEnd): Promise<RunEnd> {
    if (end.how === "lost") return end;
    const nowMs = this.#deps.clock.now();
    const ending = endingOf(end, nowMs);
    const stored = await this.#insist(`store the end of job ${claim.job.id}`, async () => ({
      state: await this.#deps.queue.end(claim, notes.note, ending),
    }));
    // Refused until the process stops: the next one runs it again.
    if (!stored) return { how: "stopped" };
    if (stored.state === undefined) return { how: "lost" };
    if (stored.state === "cancelled" || stored.state === "paused") return { how: stored.state };
    // It was resumed before its run had come to its end.
    return end.how === "paused" ? { how: "later", runAtMs: nowMs } : end;
  }

  #contextOf(run: Run): JobContext<unknown> {
    const { job } = run.claim;
    return {
      jobId: job.id,
      attempt: job.attempts,
      signal: run.abort.signal,
      progress: (event) => {
        run.notes.progress(event);
        run.writing ??= this.#write(run);
        return this.#watchers.tell(job.id, event, run.abort.signal);
      },
      tell: (event) => this.#watchers.tell(job.id, event, run.abort.signal),
      line: (text) => {
        run.notes.line(this.#deps.clock.now(), text);
        run.writing ??= this.#write(run);
      },
    };
  }

  /** Writes what a run tells once a second; its end writes the rest. */
  async #write(run: Run): Promise<void> {
    const { queue, clock } = this.#deps;
    while (!run.notes.isEmpty) {
      await clock.sleep(NOTE_EVERY_MS, run.over.signal).catch(() => undefined);
      if (run.over.signal.aborted) return;
      const { note } = run.notes;
      try {
        await queue.note(run.claim, note);
        run.notes.written(note);
      } catch (error) {
        this.#refused("note", error);
      }
    }
    run.writing = undefined;
  }

  async #beat(): Promise<void> {
    const { queue, clock } = this.#deps;
    const { signal } = this.#stopping;
    await this.freed();
    for (;;) {
      await clock.sleep(HEARTBEAT_MS, signal).catch(() => undefined);
      if (signal.aborted) return;
      try {
        const claims = Array.from(this.#running.values(), ({ claim }) => claim);
        const { lost, cancelled, paused, freed } = await queue.renew(claims, LEASE_MS);
        for (const { job } of lost) this.#endRun(job.id, "lost");
        for (const { job } of cancelled) this.#endRun(job.id, "cancelled");
        for (const { job } of paused) this.#endRun(job.id, "paused");
        if (freed > 0) this.wake();
      } catch (error) {
        this.#refused("renew leases", error);
      }
    }
  }

  /** Tries until the database takes it. @returns undefined: the runner stops */
  async #insist<T extends object | number>(operation: string, work: () => Promise<T>): Promise<T | undefined> {
    const { clock } = this.#deps;
    const { signal } = this.#stopping;
    for (let refusals = 0; ;) {
      try {
        return await work();
      } catch (error) {
        this.#refused(operation, error);
      }
      if (signal.aborted) return undefined;
      await clock.sleep(pauseMs(++refusals), signal).catch(() => undefined);
    }
  }

  #refused(operation: string, error: unknown): void {
    this.#deps.log.warn({ operation, err: error }, "the database refuses, jobs wait");
  }
}

function parsed(kind: AnyKind, payload: unknown): object {
  try {
    return kind.parse(payload);
  } catch (cause) {
    throw new Hopeless(`what is stored of it can't be read: ${messageOf(cause)}`, { cause });
  }
}
