/** A thread of `passwords.ts`. */
import { setPriority } from "node:os";
import { parentPort } from "node:worker_threads";
import { compareSync, getRounds, hashSync } from "bcryptjs";
import type { PasswordAnswer, PasswordTask } from "./passwords.ts";

const NICE = 10;
// Linux counts a thread as a process here; elsewhere this would slow the whole daemon down.
if (process.platform === "linux") setPriority(0, NICE);

/** Takes the time of a hash of that cost. */
function spend(password: string, cost: number): void {
  hashSync(password, `$2b$${String(cost).padStart(2, "0")}$${".".repeat(22)}`);
}

function matches({ password, hash, cost }: Extract<PasswordTask, { verb: "match" }>): boolean {
  if (hash === undefined) {
    spend(password, cost);
    return false;
  }
  if (compareSync(password, hash)) return true;
  // Each is twice the one before: with the rounds above, they make up those of the full cost.
  for (let more = getRounds(hash); more < cost; more++) spend(password, more);
  return false;
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
