/** A thread of `passwords.ts`. */
import { setPriority } from "node:os";
import { parentPort } from "node:worker_threads";
import { compareSync, getRounds, hashSync } from "bcryptjs";
import type { PasswordAnswer, PasswordTask } from "./passwords.ts";

const NICE = 19;
// Linux counts a thread as a process here; elsewhere this would slow the whole daemon down.
if (process.platform === "linux") setPriority(0, NICE);

/** So many of the last real checks are remembered, and after so many that only took their time one is made for the sake of that. */
const SAMPLES = 8;
const RESTS = 16;
/** How long a check of the full cost took lately, in milliseconds. */
const lately: number[] = [];
let rested = 0;
const nothing = new Int32Array(new SharedArrayBuffer(4));

/**
 * Takes until `startedAt` is as long ago as a check of that cost takes. It sleeps: who guesses at names that nobody has, from however many
 * addresses, should cost no more than the time of this thread, which nobody else needs.
 */
function takeTime(password: string, cost: number, startedAt: number): void {
  if (lately.length === 0 || ++rested > RESTS) {
    rested = 0;
    const beginsAt = performance.now();
    hashSync(password, `$2b$${String(cost).padStart(2, "0")}$${".".repeat(22)}`);
    learn(performance.now() - beginsAt);
    return;
  }
  const wanted = lately[Math.floor(Math.random() * lately.length)] ?? 0;
  const left = wanted - (performance.now() - startedAt);
  if (left > 0) Atomics.wait(nothing, 0, 0, left);
}

function learn(ms: number): void {
  lately.push(ms);
  if (lately.length > SAMPLES) lately.shift();
}

function matches({ password, hash, cost }: Extract<PasswordTask, { verb: "match" }>): boolean {
  const startedAt = performance.now();
  if (hash === undefined) {
    takeTime(password, cost, startedAt);
    return false;
  }
  const isRight = compareSync(password, hash);
  const rounds = getRounds(hash);
  if (rounds >= cost) learn((performance.now() - startedAt) / 2 ** (rounds - cost));
  else if (!isRight) takeTime(password, cost, startedAt);
  return isRight;
}

parentPort?.on("message", (task: PasswordTask) => {
  let answer: PasswordAnswer;
  try {
    answer = { value: task.verb === "hash" ? hashSync(task.password, task.cost) : matches(task) };
  } catch (error) {
    answer = { message: (error as Error).message };
  }
  parentPort?.postMessage(answer, []);
});
