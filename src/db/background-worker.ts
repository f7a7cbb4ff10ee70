/** The thread of `background.ts`. */
import { setPriority } from "node:os";
import { parentPort, workerData } from "node:worker_threads";
import Sqlite from "better-sqlite3";
import type { Answer, Question } from "./background.ts";

/** A tenth of the weight of the threads that serve; not less, since others wait for the end of a transaction. */
const NICE = 10;
// Linux counts a thread as a process here; elsewhere this would slow the whole daemon down.
if (process.platform === "linux") setPriority(0, NICE);

const { file } = workerData as { file: string };
const connections = { reader: new Sqlite(file, { readonly: true }), writer: new Sqlite(file) };
connections.writer.pragma("synchronous = NORMAL");
connections.writer.pragma("foreign_keys = ON");
connections.writer.pragma("wal_autocheckpoint = 0");
connections.writer.pragma("busy_timeout = 0");
// What is mapped counts as memory of this process: a million tags took 60 MiB more with four times as much.
for (const db of Object.values(connections)) db.pragma("mmap_size = 67108864");

const statements = { reader: new Map<string, Sqlite.Statement>(), writer: new Map<string, Sqlite.Statement>() };

function prepared(by: "reader" | "writer", sql: string): Sqlite.Statement {
  let statement = statements[by].get(sql);
  if (!statement) {
    statement = connections[by].prepare(sql);
    statements[by].set(sql, statement);
  }
  return statement;
}

function answer(question: Question): unknown {
  if (question.verb === "exec") return void connections.writer.exec(question.sql);
  const statement = prepared(question.by, question.sql);
  if (question.verb === "run") return statement.run(question.params).changes;
  return statement[question.verb](question.params);
}

parentPort?.on("message", (question: Question | undefined) => {
  if (question === undefined) {
    for (const db of Object.values(connections)) db.close();
    parentPort?.close();
    return;
  }
  let told: Answer;
  try {
    told = { value: answer(question) };
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    told = { message, code };
  }
  parentPort?.postMessage(told, []);
});
