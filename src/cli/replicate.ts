import { loadConfig } from "../config/load.ts";
import type { Config, ReplicationRule } from "../config/schema.ts";
import type { RulePlan } from "../replication/plan.ts";
import type { RunOutcome } from "../replication/run.ts";
import { assertAnswers, Daemon, localPlace, NoDaemon, remotePlace, type Place } from "./daemon.ts";
import { countText } from "./format.ts";
import { imageBars, type ImageShare } from "./image-bars.ts";
import { DONE, FAILED, json, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { planHere, runHere } from "./replicate-here.ts";
import { outcomeText, planText, ruleRow, statusText, type RuleStates } from "./replicate-text.ts";
import { runLines, startAndWatch, type Run, type Task } from "./replicate-watch.ts";
import { tableText } from "./table.ts";
import { Terminal } from "./terminal.ts";

const USAGE = `Usage: entrepot replicate COMMAND [OPTIONS]

Copies selected repositories between registries, by the rules under replication.rules and those that the API has made.

  list                   list the rules
  status                 tell how far the copies of each rule are
  plan RULE              tell what a rule would copy; nothing is written anywhere
  run RULE               copy it, and show how far it is; Ctrl-C leaves the run going
  log ID                 tell what a run or one of its copies has done
  undo RUN               take back what a run has moved, and pause its rule
  pause RULE             let it start nothing by itself, and its copies wait
  resume RULE            let it go on

  --sizes                of a plan: read what would be copied, too, and tell its bytes and the requests to come (on Docker Hub, these reads are pulls)
  --verbose              of a plan: also the tags that stay as they are or are left out, each with its reason
  --detach               of run and undo: come back as soon as it is queued
  --why TEXT             of pause: what status tells (default: by hand)
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens, and has the rules if none runs
  --json                 as JSON; of a run, one object a line for each image

The daemon does it. Where none runs, list, plan and run work by themselves, unless the rule names "self".
Exit status: 0 done, 1 something could not be asked, copied or written, 2 wrong usage or configuration.
`;

const API = "/api/v1/replication";

const OPTIONS = {
  sizes: { type: "boolean", default: false },
  verbose: { type: "boolean", default: false },
  detach: { type: "boolean", default: false },
  why: { type: "string" },
  server: { type: "string" },
  config: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

/** What each command takes, and the options that only some take. */
const COMMANDS: Record<string, { takes?: "RULE" | "RUN" | "ID"; options?: readonly string[] }> = {
  list: {},
  status: {},
  plan: { takes: "RULE", options: ["sizes", "verbose"] },
  run: { takes: "RULE", options: ["detach", "verbose"] },
  log: { takes: "ID" },
  undo: { takes: "RUN", options: ["detach"] },
  pause: { takes: "RULE", options: ["why"] },
  resume: { takes: "RULE" },
};

type Values = ReturnType<typeof read>["values"];

/** `entrepot replicate`: shows the rules of replication and what they would do, and does it. */
export function runReplicate(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { command, subject, values } = read(args);
    const { server, config: file } = values;
    if (server !== undefined) {
      await using daemon = new Daemon(remotePlace(server, io.env));
      return await byDaemon(daemon, command, subject, values, io);
    }
    const { config } = await loadConfig({ file, env: io.env });
    let place: Place;
    try {
      place = await localPlace(config, io.env);
      // Where there never was a daemon, no lock tells that none runs.
      await assertAnswers(place);
    } catch (error) {
      if (!(error instanceof NoDaemon || error instanceof UsageError)) throw error;
      return await byItself(config, error, command, subject, values, io);
    }
    await using daemon = new Daemon(place);
    return await byDaemon(daemon, command, subject, values, io);
  });
}

/** @throws UsageError */
function read(args: string[]) {
  const { values, positionals } = parseOptions(args, OPTIONS, 2);
  const [command, subject = ""] = positionals;
  if (command === undefined) throw new UsageError("a command is missing");
  const known = Object.hasOwn(COMMANDS, command) ? COMMANDS[command] : undefined;
  if (!known) throw new UsageError(`replicate has no command ${command}`);
  const { takes, options = [] } = known;
  if (takes === undefined && subject !== "") throw new UsageError(`${command} takes no argument`);
  const hint = takes === "RULE" ? "list names the rules" : "status has that of each rule's last run";
  if (takes !== undefined && subject === "") throw new UsageError(`${command} takes ${takes}: ${hint}`);
  if (takes !== undefined && takes !== "RULE" && !/^[1-9][0-9]{0,14}$/.test(subject))
    throw new UsageError(`"${subject}" is no ID: ${hint}`);
  for (const name of ["sizes", "verbose", "detach", "why"] as const) {
    const given = values[name] !== undefined && values[name] !== false;
    if (given && !options.includes(name)) throw new UsageError(`${command} takes no --${name}`);
  }
  return { command, subject, values };
}

async function byDaemon(
  daemon: Daemon,
  command: string,
  subject: string,
  values: Values,
  io: CommandIo,
): Promise<number> {
  const print = (text: string): void => void io.stdout.write(text);
  const rule = `${API}/rules/${encodeURIComponent(subject)}`;
  switch (command) {
    case "list": {
      const { items } = await states(daemon);
      const rules = await Promise.all(
        items.map(({ name }) => daemon.read<{ rule: ReplicationRule }>(`${API}/rules/${encodeURIComponent(name)}`)),
      );
      return list(
        rules.map((one) => one.rule),
        values,
        io,
      );
    }
    case "status": {
      const found = await states(daemon);
      print(values.json ? json(found) : statusText(found));
      return DONE;
    }
    case "plan": {
      // Thousands of tags at a slow registry take minutes.
      const found = await daemon.change<RulePlan>(`${rule}/plan`, { sizes: values.sizes }, "POST", 0);
      print(values.json ? json(found) : planText(found, values.verbose));
      return isWhole(found) ? DONE : FAILED;
    }
    case "run":
      return await startAndWatch(daemon, `${rule}/run`, values, io);
    case "undo":
      return await startAndWatch(daemon, `${API}/runs/${subject}/undo`, values, io);
    case "log":
      return await log(daemon, subject, values, io);
    case "pause":
      await daemon.change(`${rule}/pause`, values.why === undefined ? {} : { why: values.why });
      if (!values.json) print(`${subject} is paused: entrepot replicate resume ${subject} lets it go on\n`);
      return DONE;
    default:
      await daemon.change(`${rule}/resume`);
      if (!values.json) print(`${subject} goes on\n`);
      return DONE;
  }
}

async function byItself(
  config: Config,
  reason: Error,
  command: string,
  name: string,
  values: Values,
  io: CommandIo,
): Promise<number> {
  const named = { config, name, reason };
  const showPlan = (found: RulePlan): void => void io.stdout.write(planText(found, values.verbose));
  if (command === "list") return list(config.replication.rules, values, io);
  if (command === "plan") {
    const found = await planHere({ ...named, sizes: values.sizes });
    if (values.json) io.stdout.write(json(found));
    else showPlan(found);
    return isWhole(found) ? DONE : FAILED;
  }
  if (command !== "run") throw reason;
  if (values.detach) throw new UsageError(`--detach leaves the run to the daemon: ${reason.message}`);
  const terminal = new Terminal(io.stdout);
  let failed = 0;
  const running = new Map<string, ImageShare>();
  const tell = (outcome: RunOutcome): void => {
    if (outcome.outcome === "failed") failed++;
    running.delete(`${outcome.registry} ${outcome.name}`);
    if (values.json) io.stdout.write(`${JSON.stringify(outcome)}\n`);
    else terminal.conclude(outcomeText(outcome, terminal));
  };
  const show: Parameters<typeof runHere>[3] = ({ registry, name: image, doneBytes, totalBytes }) => {
    if (values.json) return;
    const subject = `${registry} ${image}`;
    running.set(subject, { name: subject, doneBytes, totalBytes });
    terminal.show(
      (width, height) => imageBars([...running.values()], width, height),
      () => `${countText(running.size, "image")} under way`,
    );
  };
  const found = await runHere(named, values.json ? () => undefined : showPlan, tell, show);
  if (values.json)
    for (const fault of found.faults) io.stdout.write(`${JSON.stringify({ outcome: "failed", ...fault })}\n`);
  return failed === 0 && isWhole(found) ? DONE : FAILED;
}

async function states(daemon: Daemon): Promise<RuleStates> {
  return await daemon.read<RuleStates>(`${API}/rules?limit=1000`);
}

function list(rules: readonly ReplicationRule[], values: Values, io: CommandIo): number {
  if (values.json) io.stdout.write(json(rules));
  else if (rules.length === 0) io.stdout.write("there are no rules: add some under replication.rules\n");
  else io.stdout.write(tableText([["RULE", "FROM", "TO", "TAGS"], ...rules.map(ruleRow)], new Set()));
  return DONE;
}

/** Whether everything could be asked, and may be written. */
function isWhole({ repositories, faults }: RulePlan): boolean {
  return faults.length === 0 && repositories.every(({ tags }) => tags.every(({ action }) => action !== "fail"));
}

async function log(daemon: Daemon, id: string, values: Values, io: CommandIo): Promise<number> {
  const print = (line: string): void => void io.stdout.write(`${plain(line)}\n`);
  const job = await daemon.read<{ kind: string; state: string; subject?: string; error?: string }>(
    `/api/v1/jobs/${id}`,
  );
  if (job.kind !== "replicate") {
    // Of a copy that has failed, the last line is the error.
    const error = job.error === undefined || job.kind.startsWith("copy:") ? "" : `: ${job.error}`;
    if (!values.json) print(`${job.subject ?? job.kind}: ${job.state}${error}`);
  } else if (!values.json) for (const line of runLines(await daemon.read<Run>(`${API}/runs/${id}`))) print(line);
  for await (const line of daemon.list<{ at: string; text: string }>(`/api/v1/jobs/${id}/lines`))
    print(values.json ? JSON.stringify(line) : `${new Date(line.at).toLocaleString("sv-SE")}  ${line.text}`);
  if (job.kind !== "replicate" || values.json) return DONE;
  for await (const task of daemon.list<Task>(`${API}/runs/${id}/tasks`, { state: "dead" }))
    print(`✗ ${task.subject} (${task.id}): ${task.error ?? "it failed"}`);
  return DONE;
}

/** What others have said, in an error or a line, must not steer a terminal. */
function plain(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, "?");
}
