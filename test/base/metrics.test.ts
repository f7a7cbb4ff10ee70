import assert from "node:assert/strict";
import { test } from "node:test";
import { Metrics } from "../../src/base/metrics.ts";

test("the process's own metrics tell what it has used by the time of each scrape", async () => {
  const metrics = new Metrics();
  const scrape = async (): Promise<Map<string, number>> => {
    const { body } = await metrics.render();
    const samples = body.split("\n").filter((line) => line.startsWith("entrepot_"));
    return new Map(samples.map((line) => [line.split(" ")[0] ?? "", Number(line.split(" ")[1])]));
  };
  const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  await nextTurn();
  const before = await scrape();
  const until = performance.now() + 50;
  while (performance.now() < until);
  await nextTurn();
  const after = await scrape();

  for (const name of ["entrepot_process_cpu_seconds_total", "entrepot_event_loop_busy_seconds_total"]) {
    const used = (after.get(name) ?? 0) - (before.get(name) ?? 0);
    assert.ok(used > 0.02 && used < 20, `${name} grew by ${used} while the process was busy for 0.05 s`);
  }
  const resident = after.get("entrepot_process_resident_memory_bytes") ?? 0;
  assert.ok(resident > 10e6 && resident < 10e9, `${resident} bytes are resident`);
  assert.ok(Math.abs((after.get("entrepot_process_start_time_seconds") ?? 0) * 1000 - Date.now()) < 600_000);
});
