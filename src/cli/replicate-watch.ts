/** A run of the daemon, as a person watches it: a bar for each image that is being copied, and a line for each that is done. */
import type { RunOutcome } from "../replication/run.ts";
import type { FeedEvent, RunResult, TaskResult } from "../replication/tasks.ts";
import type { Daemon } from "./daemon.ts";
import { bytesText, countText, cut } from "./format.ts";
import { imageBars } from "./image-bars.ts";
import { interruptible } from "./interrupt.ts";
import { DONE, FAILED, type CommandIo } from "./io.ts";
import { outcomeText } from "./replicate-text.ts";
import { Terminal } from "./terminal.ts";

const API = "/api/v1/replication";
const AGAIN_AFTER_MS = 1000;

type Told = FeedEvent | { type: "missed" };
type Progress = Extract<FeedEvent, { type: "progress" }>;

/** As the API answers it. */
export interface Run {
  id: number;
  rule: string;
  trigger: string;
  state: string;
  createdAt: string;
  startedAt?: string;
  endedAt?: string;
  error?: string;
  /** The run whose moves it takes back. */
  undo?: number;
  result?: RunResult;
}

export interface Task {
  id: number;
  /** `dr mirror/library/node:18`. */
  subject: string;
  state: string;
  error?: string;
  result?: TaskResult;
}

export interface Watching {
  json: boolean;
  /** Comes back as soon as it is queued. */
  detach: boolean;
}

/**
 * Starts a run, and watches it to its end.
 * @param path what starts it
 * @returns the exit status
 * @throws NoDaemon, LostDaemon; Error with what the daemon says where it refuses
 */
export async function startAndWatch(
  daemon: Daemon,
  path: string,
  { json, detach }: Watching,
  io: CommandIo,
): Promise<number> {
  using interrupt = interruptible();
  const { signal } = interrupt;
  // Before there is a run: nothing of it is missed.
  let events = detach ? undefined : await daemon.watch<Told>(`${API}/stream`, signal);
  const started = await daemon.change<{ run: number; joined: boolean }>(path);
  const id = started.run;
  const print = (line: string): void => void (json || io.stdout.write(`${line}\n`));
  if (started.joined && events) print(`run ${id} is under way already`);
  if (!events) {
    if (json) io.stdout.write(`${JSON.stringify(started)}\n`);
    const how = started.joined ? "under way already" : "queued";
    print(`run ${id} is ${how}: entrepot replicate log ${id} tells of it`);
    return DONE;
  }
  const view = json ? undefined : new RunView(new Terminal(io.stdout));
  for (;;) {
    let lost = true;
    for await (const event of events) {
      if (event.type === "missed") break;
      if (event.run !== id) continue;
      view?.apply(event);
      if (event.type === "run" && isEnd(event.state)) {
        lost = false;
        break;
      }
    }
    view?.clear();
    if (signal.aborted) {
      io.stderr.write(
        `run ${id} goes on: entrepot replicate log ${id} tells of it, entrepot jobs cancel ${id} ends it\n`,
      );
      return FAILED;
    }
    const run = await daemon.read<Run>(`${API}/runs/${id}`);
    if (!lost || run.endedAt !== undefined) return view ? tell(run, view.failed, io) : await tellJson(daemon, run, io);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_AFTER_MS));
    events = await daemon.watch<Told>(`${API}/stream`, signal);
  }
}

function isEnd(state: Extract<FeedEvent, { type: "run" }>["state"]): boolean {
  return state === "done" || state === "failed" || state === "cancelled" || state === "stopped";
}

/** What a run came to, in lines. @param told faults that are not told once more, by where they were */
export function runLines(
  { id, rule, trigger, state, error, undo, result }: Run,
  told: ReadonlySet<string> = new Set(),
): string[] {
  const what = undo === undefined ? `of ${rule} (${trigger})` : `takes back run ${undo} of ${rule}`;
  const head = `run ${id} ${what}: ${state}`;
  if (!result) return [error === undefined || state === "done" ? head : `${head}: ${error}`];
  const { copied, unchanged, kept, withheld, failed, deleted, sentBytes, mountedBytes, presentBytes, faults } = result;
  const counted =
    undo === undefined ? { copied, unchanged, kept, withheld, failed, deleted } : { copied, kept, failed };
  const words: Record<string, string> = undo === undefined ? {} : { copied: "taken back", kept: "left" };
  const counts = Object.entries(counted)
    .filter(([name, count]) => count > 0 || name === "copied")
    .map(([name, count]) => `${count} ${words[name] ?? name}`);
  const bytes = `; ${bytesText(sentBytes)} sent, ${bytesText(mountedBytes)} mounted, ${bytesText(presentBytes)} there already`;
  const untold = faults.filter(({ where }) => !told.has(where));
  return [
    `${head}; ${counts.join(", ")}${undo === undefined ? bytes : ""}`,
    ...untold.map(({ where, message }) => `! ${where}: ${message}`),
  ];
}

function isWhole({ state, result }: Run): boolean {
  return state === "done" && result?.failed === 0 && result.faults.length === 0;
}

/** @param told what has been told to have failed, by where it did */
function tell(run: Run, told: ReadonlySet<string>, io: CommandIo): number {
  for (const line of runLines(run, told)) io.stdout.write(`${line}\n`);
  if (run.endedAt === undefined) io.stdout.write("the daemon stops: the run goes on when it is back\n");
  return isWhole(run) ? DONE : FAILED;
}

/** One object a line for each image, as a run without a daemon tells them. */
async function tellJson(daemon: Daemon, run: Run, io: CommandIo): Promise<number> {
  for await (const task of daemon.list<Task>(`${API}/runs/${run.id}/tasks`)) {
    io.stdout.write(`${JSON.stringify(outcomeOf(task))}\n`);
  }
  for (const fault of run.result?.faults ?? []) io.stdout.write(`${JSON.stringify({ outcome: "failed", ...fault })}\n`);
  return isWhole(run) ? DONE : FAILED;
}

function outcomeOf({ subject, state, error, result }: Task): object {
  const [registry, name] = subject.split(" ");
  if (result) {
    const { outcome, sentBytes, mountedBytes, notes } = result;
    return { registry, name, outcome, sentBytes, mountedBytes, notes };
  }
  const notes = [error ?? `the copy is ${state}`];
  return { registry, name, outcome: "failed", sentBytes: 0, mountedBytes: 0, notes };
}

/** What is shown of a run while it goes on. */
class RunView {
  readonly #terminal: Terminal;
  readonly #copies = new Map<number, Progress>();
  readonly #ended = new Set<number>();
  readonly #failed = new Set<string>();
  #run: Extract<FeedEvent, { type: "run" }> | undefined;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  /** Subjects of the copies that were told to have failed. */
  get failed(): ReadonlySet<string> {
    return this.#failed;
  }

  apply(event: FeedEvent): void {
    switch (event.type) {
      case "run":
        this.#run = event;
        break;
      case "progress":
        this.#copies.set(event.task, event);
        break;
      case "task":
        this.#task(event);
    }
    this.#terminal.show(
      (width, height) => [
        cut(this.#title(), width),
        ...imageBars(
          [...this.#copies.values()].map(({ subject, ...share }) => ({ name: subject, ...share })),
          width,
          height - 1,
        ),
      ],
      () => this.#title(),
    );
  }

  clear(): void {
    this.#terminal.clear();
  }

  #title(): string {
    if (!this.#run) return "";
    const { rule, state, tasks, ended, message } = this.#run;
    // The daemon tells of the run less often than of its copies.
    const through = Math.min(tasks, Math.max(ended, this.#ended.size));
    return `${rule}: ${state}${tasks > 0 ? `, ${through} of ${countText(tasks, state === "undoing" ? "tag" : "image")}` : ""}${message ? `: ${message}` : ""}`;
  }

  #task({
    task,
    subject,
    state,
    outcome = "copied",
    sentBytes = 0,
    mountedBytes = 0,
    message,
  }: Extract<FeedEvent, { type: "task" }>): void {
    if (state === "running") return;
    this.#copies.delete(task);
    if (state === "waiting") return this.#terminal.print(`… ${subject}: ${message ?? "waits, and is tried again"}`);
    if (state === "stopped") return;
    this.#ended.add(task);
    const notes = message === undefined ? [] : [message];
    const [registry = "", name = ""] = subject.split(" ");
    if (state === "done") {
      if (outcome === "superseded" || outcome === "withheld") {
        return this.#terminal.print(`- ${subject}: ${[outcome, ...notes].join(": ")}`);
      }
      const done: RunOutcome = { registry, name, outcome, sentBytes, mountedBytes, notes };
      return this.#terminal.print(outcomeText(done, this.#terminal));
    }
    this.#failed.add(subject);
    const why = message ?? `the copy is ${state}`;
    const failed: RunOutcome = { registry, name, outcome: "failed", sentBytes, mountedBytes, notes: [why] };
    this.#terminal.print(outcomeText(failed, this.#terminal));
  }
}
