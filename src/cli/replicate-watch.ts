/** A run of the daemon, as a person watches it: a bar for each image that is being copied, and a line for each that is done. */
import type { RunOutcome } from "../replication/run.ts";
import type { FeedEvent, RunResult, TaskResult } from "../replication/tasks.ts";
import type { Daemon } from "./daemon.ts";
import { barText, bytesText, cut } from "./format.ts";
import { interruptible } from "./interrupt.ts";
import { DONE, FAILED, type CommandIo } from "./io.ts";
import { outcomeText } from "./replicate-text.ts";
import { Terminal } from "./terminal.ts";

const API = "/api/v1/replication";
const AGAIN_AFTER_MS = 1000;
const MOST_BARS = 12;

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
  if (started.joined) print(`run ${id} is under way already`);
  if (!events) {
    if (json) io.stdout.write(`${JSON.stringify(started)}\n`);
    print(`run ${id} is queued: entrepot replicate log ${id} tells of it`);
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
    if (!lost || run.endedAt !== undefined) return json ? await tellJson(daemon, run, io) : tell(run, io);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_AFTER_MS));
    events = await daemon.watch<Told>(`${API}/stream`, signal);
  }
}

function isEnd(state: Extract<FeedEvent, { type: "run" }>["state"]): boolean {
  return state === "done" || state === "failed" || state === "cancelled" || state === "stopped";
}

/** What a run came to, in lines. */
export function runLines({ id, rule, trigger, state, error, result }: Run): string[] {
  const head = `run ${id} of ${rule} (${trigger}): ${state}`;
  if (!result) return [error === undefined || state === "done" ? head : `${head}: ${error}`];
  const { copied, unchanged, kept, withheld, failed, deleted, sentBytes, mountedBytes, presentBytes, faults } = result;
  const counts = Object.entries({ copied, unchanged, kept, withheld, failed, deleted })
    .filter(([name, count]) => count > 0 || name === "copied")
    .map(([name, count]) => `${count} ${name}`);
  const bytes = `${bytesText(sentBytes)} sent, ${bytesText(mountedBytes)} mounted, ${bytesText(presentBytes)} there already`;
  return [`${head}; ${counts.join(", ")}; ${bytes}`, ...faults.map(({ where, message }) => `! ${where}: ${message}`)];
}

function isWhole({ state, result }: Run): boolean {
  return state === "done" && result?.failed === 0 && result.faults.length === 0;
}

function tell(run: Run, io: CommandIo): number {
  for (const line of runLines(run)) io.stdout.write(`${line}\n`);
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
  #title = "";

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  apply(event: FeedEvent): void {
    switch (event.type) {
      case "run": {
        const { rule, state, tasks, ended, message } = event;
        this.#title = `${rule}: ${state}${tasks > 0 ? `, ${ended} of ${tasks}` : ""}${message ? `: ${message}` : ""}`;
        break;
      }
      case "progress":
        this.#copies.set(event.task, event);
        break;
      case "task":
        this.#task(event);
    }
    this.#terminal.show(
      (width) => [
        cut(this.#title, width),
        ...[...this.#copies.values()].slice(0, MOST_BARS).map((one) => barOf(one, width)),
      ],
      () => this.#title,
    );
  }

  clear(): void {
    this.#terminal.clear();
  }

  #task({ task, subject, state, outcome, message }: Extract<FeedEvent, { type: "task" }>): void {
    if (state === "running") return;
    const sentBytes = this.#copies.get(task)?.sentBytes ?? 0;
    this.#copies.delete(task);
    const [registry = "", name = ""] = subject.split(" ");
    const notes = message === undefined ? [] : [message];
    if (state === "waiting") this.#terminal.print(`… ${subject}: ${message ?? "waits, and is tried again"}`);
    else if (state === "stopped") return;
    else if (state === "done" && outcome !== "superseded" && outcome !== "withheld") {
      const ended: RunOutcome = { registry, name, outcome: outcome ?? "copied", sentBytes, mountedBytes: 0, notes };
      this.#terminal.print(outcomeText(ended, this.#terminal));
    } else if (state === "done") this.#terminal.print(`- ${subject}: ${[outcome, ...notes].join(": ")}`);
    else {
      const failed = notes.length > 0 ? notes : [`the copy is ${state}`];
      const ended: RunOutcome = { registry, name, outcome: "failed", sentBytes, mountedBytes: 0, notes: failed };
      this.#terminal.print(outcomeText(ended, this.#terminal));
    }
  }
}

function barOf({ subject, doneBytes, totalBytes }: Progress, width: number): string {
  const share = totalBytes === 0 ? 0 : Math.min(1, doneBytes / totalBytes);
  const facts = `${`${Math.floor(share * 100)}%`.padStart(4)}  ${bytesText(doneBytes)} of ${bytesText(totalBytes)}`;
  const bar = barText(share, 20);
  return cut(`${bar} ${facts}  ${subject}`, width);
}
