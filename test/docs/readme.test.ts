import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { Metrics } from "../../src/base/metrics.ts";
import { ConfigError } from "../../src/config/faults.ts";
import { configJsonSchema, type JsonSchema } from "../../src/config/json-schema.ts";
import { defaultConfig, parseConfig } from "../../src/config/load.ts";

const ROOT = join(import.meta.dirname, "../..");
const README = readDocument("README.md");
const OPERATIONS = readDocument("docs/operations.md");
const DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].concat(
  readdirSync(join(ROOT, "docs"), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".md"))
    .map((name) => join("docs", name)),
);

function readDocument(path: string): string {
  return readFileSync(join(ROOT, path), "utf8");
}

type Described = JsonSchema & { default?: unknown; enum?: string[]; const?: string; anyOf?: Described[] };

interface Key {
  path: string;
  schema: Described;
  /** Of a list of mappings: what each may hold. */
  itemKeys: string[];
}

/** Every key that holds a value; an upstream's name is NAME. */
function keysOf(schema: Described, path: string[] = []): Key[] {
  // What stands under `properties` of upstreams is docker.io, which has the keys of every other one.
  if (schema.additionalProperties) return keysOf(schema.additionalProperties, [...path, "NAME"]);
  if (schema.properties) {
    return Object.entries(schema.properties).flatMap(([name, child]) => keysOf(child, [...path, name]));
  }
  const own = { path: path.join("."), schema, itemKeys: Object.keys(schema.items?.properties ?? {}) };
  // A fallback takes what an upstream takes.
  if (own.itemKeys.length === 0 || path.at(-1) === "fallbacks") return [own];
  return [{ ...own, itemKeys: [] }, ...keysOf(schema.items ?? {}, [...path.slice(0, -1), `${path.at(-1)}[]`])];
}

/** The line that the README's table has for a key. */
function rowOf({ path, schema, itemKeys }: Key): string {
  const { description = "", default: standard } = schema;
  const [, meaning = description, range = ""] = /^(.*?)(?: A ((?:duration|size|number).*)\.)?$/.exec(description) ?? [];
  const unit = range || wordsFor(schema) || assert.fail(`${path} has a type that the table has no word for`);
  const shown =
    standard === undefined ? "" : `\`${typeof standard === "string" ? standard : JSON.stringify(standard)}\``;
  const each = itemKeys.length === 0 ? "" : ` Each takes ${itemKeys.map((key) => `\`${key}\``).join(", ")} as above.`;
  return `| \`${path}\` | ${shown} | ${unit} | ${meaning}${each} |`;
}

function wordsFor({ type, const: only, enum: values = only === undefined ? [] : [only], anyOf }: Described): string {
  if (anyOf) return anyOf.map(wordsFor).join(" or ");
  if (values.length > 0) return values.map((value) => `\`${value}\``).join(", ");
  return { string: "text", array: "list", boolean: "true or false" }[type ?? ""] ?? "";
}

test("the README's table has every key of the configuration, with its default, unit and meaning", () => {
  const rows = keysOf(configJsonSchema()).map(rowOf);
  assert.ok(rows.length > 40, "the schema was not read");
  const written = README.split("\n").filter((line) =>
    /^\| `(?:server|log|storage|upstreams|hosted|gc|scrub|access|events|webhooks|retention|replication)[.[`]/.test(
      line,
    ),
  );
  assert.deepEqual(written, rows);
});

test("the README says what the built-in docker.io is", () => {
  const hub = defaultConfig().upstreams["docker.io"];
  assert.ok(hub);
  for (const value of [hub.url, ...hub.aliases]) assert.ok(README.includes(`\`${value}\``), value);
});

test("the README has every command of the help", () => {
  const help = execFileSync(process.execPath, [join(ROOT, "src/main.ts"), "--help"], { encoding: "utf8" });
  const commands = [...help.matchAll(/^ {2}([a-z]+) {2,}\S/gm)].map(([, name]) => name ?? "");
  assert.ok(commands.includes("serve"), "the help was not read");
  const missing = commands.filter((name) => !new RegExp(`^\\| \`entrepot ${name}[ \`]`, "m").test(README));
  assert.deepEqual(missing, []);
});

test("docs/operations.md has every metric, with its type and labels", () => {
  const metrics = new Metrics().registry.getMetricsAsArray() as unknown as {
    name: string;
    type: string;
    labelNames: string[];
  }[];
  const rows = metrics.map(({ name, type, labelNames }) => {
    const labels = labelNames.filter((label) => label !== "le").map((label) => `\`${label}\``);
    return `| \`${name}\` | ${type} | ${labels.join(", ")} |`;
  });
  assert.ok(rows.length > 15, "the metrics were not read");
  const written = [...OPERATIONS.matchAll(/^(\| `entrepot_\w+` \| [^|]* \| [^|]*\|)/gm)].map(([, row = ""]) => row);
  assert.deepEqual(written.toSorted(), rows.map((row) => row.replace("|  |", "| |")).toSorted());
});

test("docs/operations.md has every alert", () => {
  const { groups } = parse(readDocument("grafana/alerts.yml")) as { groups: { rules: { alert: string }[] }[] };
  const alerts = groups.flatMap(({ rules }) => rules.map(({ alert }) => alert));
  const written = [...OPERATIONS.matchAll(/^\| `(Entrepot\w+)` \|/gm)].map(([, alert]) => alert);
  assert.ok(alerts.length > 0, "the alerts were not read");
  assert.deepEqual(written, alerts);
});

test("every configuration in the documents is one that the daemon takes", () => {
  let examples = 0;
  for (const path of DOCUMENTS) {
    for (const [, text = ""] of readDocument(path).matchAll(/^```yaml\n(.*?)^```/gms)) {
      if (
        !/^(?:server|log|storage|upstreams|hosted|gc|scrub|access|events|webhooks|retention|replication):/m.test(text)
      )
        continue;
      examples += 1;
      assert.deepEqual(faultsOf(text), [], `${path}:\n${text}`);
    }
  }
  assert.ok(examples >= 2, "the examples were not found");
});

function faultsOf(yaml: string): string[] {
  try {
    parseConfig(parse(yaml));
    return [];
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    // The files of secrets that an example names are the reader's.
    return error.faults.filter(({ cause }) => !cause.includes("(ENOENT)")).map(({ path, cause }) => `${path} ${cause}`);
  }
}

test("every link between the documents leads to a file", () => {
  const broken = DOCUMENTS.flatMap((path) =>
    [...readDocument(path).matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)]
      .map(([, target = ""]) => target)
      .filter((target) => !/^[a-z]+:/.test(target) && !existsSync(join(ROOT, dirname(path), target)))
      .map((target) => `${path} → ${target}`),
  );
  assert.deepEqual(broken, []);
});
