/** Runs and tasks of a daemon, begun and looked at as its users do: by the API. */
import assert from "node:assert/strict";
import { until, type TestRegistry } from "../kit/registry.ts";

export interface Task {
  id: number;
  state: string;
  run?: number;
  runAt: string;
  tag?: string;
  error?: string;
  result?: { outcome: string; notes: string[] };
}

export interface Run {
  id: number;
  state: string;
  error?: string;
  result?: Record<"copied" | "unchanged" | "kept" | "withheld" | "failed" | "deleted", number> & {
    faults: { where: string; message: string }[];
  };
}

export const JSON_TYPE = { "content-type": "application/json" };

/** @param path below /api/v1/ */
export async function ask<T>(registry: TestRegistry, method: "GET" | "POST", path: string): Promise<T> {
  const { status, bytes } = await (method === "GET"
    ? registry.get(`/api/v1/${path}`)
    : registry.send(method, `/api/v1/${path}`, JSON_TYPE, "{}"));
  assert.ok(status < 300, bytes.toString());
  return (bytes.length > 0 ? JSON.parse(bytes.toString()) : undefined) as T;
}

/** @returns the id of the run */
export async function begin(registry: TestRegistry, rule = "out"): Promise<number> {
  const { status, bytes } = await registry.send("POST", `/api/v1/replication/rules/${rule}/run`, JSON_TYPE);
  assert.equal(status, 202, bytes.toString());
  return (JSON.parse(bytes.toString()) as { run: number }).run;
}

/** Oldest first. */
export async function tasks(registry: TestRegistry): Promise<Task[]> {
  const { items } = await ask<{ items: Task[] }>(registry, "GET", "replication/tasks");
  return items.toSorted((a, b) => a.id - b.id);
}

/** Resolves once a run has ended. */
export async function ended(registry: TestRegistry, id: number): Promise<Run> {
  let found: Run | undefined;
  await until(async () => {
    found = await ask<Run>(registry, "GET", `replication/runs/${id}`);
    return !["queued", "running", "paused"].includes(found.state);
  }, `run ${id} ends`);
  assert.ok(found);
  return found;
}

/** Lets a rule run, to its end. */
export async function run(registry: TestRegistry, rule = "out"): Promise<Run> {
  return await ended(registry, await begin(registry, rule));
}
