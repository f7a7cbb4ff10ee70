import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { before, suite, test } from "node:test";
import { parse } from "yaml";
import { findProgram, makeFolder, run, startDaemon } from "./machine.ts";
import { startTraffic } from "./traffic.ts";

const GRAFANA = join(import.meta.dirname, "../../grafana");

interface Panel {
  title: string;
  type: string;
  targets?: { expr: string; legendFormat: string }[];
}

interface Dashboard {
  panels: Panel[];
  templating: { list: { name: string; type: string; definition?: string }[] };
}

interface Rule {
  alert: string;
  expr: string;
}

interface Prometheus extends AsyncDisposable {
  /** Asks its HTTP API. @throws AssertionError unless it answers success */
  ask<T>(path: string, parameters?: Record<string, string>): Promise<T>;
}

interface Series {
  metric: Record<string, string>;
  value: [number, string];
}

suite("Prometheus and Grafana", () => {
  let dashboard: Dashboard;
  let rules: Rule[];
  before(async () => {
    dashboard = JSON.parse(await readFile(join(GRAFANA, "dashboards/entrepot.json"), "utf8")) as Dashboard;
    const alerts = parse(await readFile(join(GRAFANA, "alerts.yml"), "utf8")) as { groups: { rules: Rule[] }[] };
    rules = alerts.groups.flatMap((group) => group.rules);
  });

  test("promtool accepts the configuration and the alerts, and each alert fires when it should", async () => {
    await run("promtool", ["check", "config", join(GRAFANA, "prometheus.yml")]);
    await run("promtool", ["check", "rules", join(GRAFANA, "alerts.yml")]);
    const tests = join(import.meta.dirname, "alerts-test.yaml");
    await run("promtool", ["test", "rules", tests]);
    const tested = await readFile(tests, "utf8");
    for (const { alert } of rules) assert.ok(tested.includes(alert), `${alert} is not tested`);
  });

  test("a real Prometheus that scrapes a daemon under traffic answers every query of the dashboard and the alerts", async () => {
    await using folder = await makeFolder();
    await using traffic = await startTraffic(folder.path);
    await using prometheus = await startPrometheus(folder.path, traffic.entrepot.host);
    const stopped = new AbortController();
    const going = (async () => {
      while (!stopped.signal.aborted) await traffic.round();
    })();
    try {
      const text = await (await fetch(`http://${traffic.entrepot.host}/metrics`)).text();
      const { status, stderr } = spawnSync(findProgram("promtool"), ["check", "metrics"], {
        input: text,
        encoding: "utf8",
      });
      assert.equal(status, 0, stderr);
      await assertAnswered(prometheus, dashboard, rules, going);
    } finally {
      stopped.abort();
      await going;
    }
  });
});

/** Until every query has its series, or for too long. */
async function assertAnswered(
  prometheus: Prometheus,
  { panels, templating }: Dashboard,
  rules: Rule[],
  going: Promise<void>,
): Promise<void> {
  const queries = panels.flatMap(({ title, targets = [] }) => targets.map((target) => ({ title, ...target })));
  assert.ok(queries.length > 30, `the dashboard has ${queries.length} queries`);
  const deadline = performance.now() + 60_000;
  for (const { title, expr, legendFormat } of queries) {
    const query = expr
      .replaceAll("$__rate_interval", "10s")
      .replaceAll("$__range", "1m")
      .replaceAll(/\$(instance|upstream)\b/g, ".*");
    assert.ok(!query.includes("$"), `${title}: ${query} has a variable that is not known here`);
    for (;;) {
      const { result } = await prometheus.ask<{ result: Series[] }>("query", { query });
      const numbers = result.filter(({ value }) => Number.isFinite(Number(value[1])));
      const [first] = numbers;
      if (first) {
        for (const [, label] of legendFormat.matchAll(/\{\{(\w+)\}\}/g))
          assert.ok(first.metric[label ?? ""], `${title}: the series of ${query} have no label ${label}`);
        break;
      }
      assert.ok(performance.now() < deadline, `${title}: no series for ${query}`);
      // A failure of the traffic itself is told at once.
      await Promise.race([going, new Promise((resolve) => setTimeout(resolve, 500))]);
    }
  }

  for (const { name, type, definition } of templating.list) {
    if (type !== "query") continue;
    const [, metric = "", label = ""] = /^label_values\((\w+), (\w+)\)$/.exec(definition ?? "") ?? [];
    const values = await prometheus.ask<string[]>(`label/${label}/values`, { "match[]": metric });
    assert.ok(values.length > 0, `the variable ${name} has no values`);
  }

  for (const { expr } of rules) await prometheus.ask("query", { query: expr });
  const { groups } = await prometheus.ask<{ groups: { rules: { name: string; health: string }[] }[] }>("rules");
  const health = groups.flatMap((group) => group.rules.map((rule) => [rule.name, rule.health]));
  assert.deepEqual(
    health,
    rules.map(({ alert }) => [alert, "ok"]),
  );
}

/** Starts Prometheus on the project's own configuration, but for the target and the intervals. */
async function startPrometheus(folder: string, target: string): Promise<Prometheus> {
  const config = parse(await readFile(join(GRAFANA, "prometheus.yml"), "utf8")) as {
    rule_files: string[];
    scrape_configs: { static_configs: { targets: string[] }[] }[];
  };
  const file = join(folder, "prometheus.yml");
  await writeFile(
    file,
    JSON.stringify({
      global: { scrape_interval: "500ms", scrape_timeout: "500ms", evaluation_interval: "500ms" },
      rule_files: config.rule_files.map((name) => join(GRAFANA, name)),
      scrape_configs: config.scrape_configs.map((job) => ({ ...job, static_configs: [{ targets: [target] }] })),
    }),
  );
  const { daemon, match } = await startDaemon(
    "prometheus",
    [`--config.file=${file}`, `--storage.tsdb.path=${join(folder, "prometheus")}`, "--web.listen-address=127.0.0.1:0"],
    /msg="Listening on" address=(\S+)[^]*Server is ready/,
  );
  return {
    ask: async <T>(path: string, parameters: Record<string, string> = {}) => {
      const answer = await fetch(`http://${match[1]}/api/v1/${path}?${new URLSearchParams(parameters).toString()}`);
      const { status, data, error } = (await answer.json()) as { status: string; data: T; error?: string };
      assert.equal(status, "success", `${JSON.stringify(parameters)}: ${error}`);
      return data;
    },
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}
