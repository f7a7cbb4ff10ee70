import assert from "node:assert/strict";
import { request } from "node:http";
import { test } from "node:test";
import * as fc from "fast-check";
import { Api, type Described } from "../kit/api.ts";
import { askEveryOperation, CACHED, IMAGE, INDEX, startWithEverything } from "../kit/every-operation.ts";
import { startRegistry, type Answer, type TestRegistry } from "../kit/registry.ts";
import { startSink } from "../kit/sink.ts";
import { startUpstream } from "../kit/upstream.ts";

type Json = Record<string, unknown>;

/** For all operations together, from the first request on. */
const TIME_MS = 8_000;
/** A stream that goes on for longer is left: what came of it by then is checked. */
const PATIENCE_MS = 500;

const NAMES = ["team/app", "team/gone", "docker.io/library/app", "docker.io", "team", "1", "gc", "latest"];
/** What is there, by the name of the parameter. */
const THERE: Record<string, string[]> = {
  repository: ["team/app", "docker.io/library/app"],
  digest: [IMAGE.digest, INDEX.digest, CACHED.digest],
  tag: ["1", "2"],
  name: ["ci", "team"],
};
/** What may be deleted. */
const SPARE: Record<string, string[]> = { repository: ["team/gone"], tag: ["1"] };

/** What a client of any manners sends; its target is not changed on the way. */
function send(
  registry: TestRegistry,
  method: string,
  target: string,
  headers: Record<string, string>,
  body: string | undefined,
): Promise<Answer> {
  const { hostname, port } = new URL(registry.url);
  const length = body === undefined ? {} : { "content-length": Buffer.byteLength(body) };
  return new Promise((resolve, reject) => {
    const asked = request(
      { hostname, port, method, path: target, headers: { ...headers, ...length }, agent: false },
      (answer) => {
        const chunks: Buffer[] = [];
        const told = (): void => {
          clearTimeout(timer);
          const bytes = Buffer.concat(chunks);
          // A stream that was left ends within a line.
          const whole = answer.complete ? bytes : bytes.subarray(0, bytes.lastIndexOf("\n") + 1);
          resolve({ status: answer.statusCode ?? 0, headers: answer.headers, bytes: whole });
        };
        const timer = setTimeout(() => {
          answer.destroy();
          told();
        }, PATIENCE_MS);
        answer.on("data", (chunk: Buffer) => chunks.push(chunk));
        answer.once("end", told);
        answer.once("error", () => undefined);
      },
    );
    asked.once("error", reject);
    asked.end(body);
  });
}

const hostile = fc.oneof(
  fc.string({ unit: "binary", maxLength: 60 }),
  fc.string({ maxLength: 300 }),
  fc.constantFrom(
    "",
    " ",
    "0",
    "-1",
    "1e9",
    "NaN",
    "null",
    "true",
    "__proto__",
    "constructor",
    "\u0000",
    "a\u0000b",
    "..",
    "../../etc/passwd",
    "%2e%2e",
    "💥",
    "\ud800",
    "9".repeat(400),
    "99999999999999999999",
    "x".repeat(5000),
    "';DROP TABLE tags;--",
    "sha256:",
    "*",
    `sha256:${"0".repeat(64)}`,
    "2026-01-01T00:00:00Z",
    "-271821-04-20T00:00:00.000Z",
    "+275760-09-13T00:00:00.001Z",
  ),
);
const known = fc.constantFrom(...NAMES, IMAGE.digest, INDEX.digest, IMAGE.config.digest, "1", "2");

/** Values that a schema of the document takes, and some that it all but takes. */
function valuesOf(api: Api, schema: Json, depth = 0): fc.Arbitrary<unknown> {
  const { $ref, anyOf, oneOf, enum: values, const: only, type, pattern } = schema;
  if (typeof $ref === "string") {
    const { schemas } = api.document["components"] as { schemas: Record<string, Json> };
    return valuesOf(api, schemas[$ref.split("/").at(-1) ?? ""] ?? assert.fail($ref), depth + 1);
  }
  const choices = (anyOf ?? oneOf) as Json[] | undefined;
  if (choices) return fc.oneof(...choices.map((choice) => valuesOf(api, choice, depth + 1)));
  if (Array.isArray(values)) return fc.constantFrom(...(values as unknown[]));
  if (only !== undefined) return fc.constant(only);
  if (depth > 6) return fc.constant(null);
  switch (type) {
    case "object": {
      const properties = Object.entries((schema["properties"] ?? {}) as Record<string, Json>);
      const required = (schema["required"] ?? []) as string[];
      const model = Object.fromEntries(properties.map(([key, child]) => [key, valuesOf(api, child, depth + 1)]));
      return fc.record(model, { requiredKeys: required });
    }
    case "array":
      return fc.array(valuesOf(api, (schema["items"] ?? {}) as Json, depth + 1), { maxLength: 4 });
    case "integer":
    case "number":
      return fc.oneof(
        fc.integer({ min: 0, max: 10 }),
        fc.constantFrom(
          schema["minimum"] ?? 0,
          schema["maximum"] ?? 1,
          Number.MAX_SAFE_INTEGER,
          2 ** 53,
          1e308,
          -1,
          0.5,
        ),
      );
    case "boolean":
      return fc.boolean();
    case "string":
      return fc.oneof(
        known,
        typeof pattern === "string" ? fc.stringMatching(new RegExp(pattern)) : fc.string(),
        hostile,
      );
    default:
      return fc.jsonValue({ maxDepth: 3 });
  }
}

/** A text as it stands in a target: encoded as it should be, or by a client that knows no better. */
function written(text: fc.Arbitrary<unknown>): fc.Arbitrary<string> {
  const raw = text.map((value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? "")));
  return fc.oneof(
    { weight: 8, arbitrary: raw.map((value) => encodeURIComponent(value.toWellFormed())) },
    { weight: 1, arbitrary: raw.map((value) => value.replaceAll(/[^\x21-\x7e]|[?#]/g, "%")) },
    {
      weight: 1,
      arbitrary: fc.constantFrom("%", "%zz", "%ff%fe", "%00", "%2F", "%2e%2e%2f", "..", ".", "%c0%af", "a%20b", ""),
    },
  );
}

function seldom<T>(value: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.oneof({ weight: 7, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: value });
}

interface Sent {
  target: string;
  headers: Record<string, string>;
  body: string | undefined;
}

function requestsOf(api: Api, { path, parameters, requestBody, method }: Described): fc.Arbitrary<Sent> {
  const inPath = parameters.filter(({ in: where }) => where === "path");
  const inQuery = parameters.filter(({ in: where }) => where === "query");
  const segments = fc.tuple(
    ...inPath.map(({ name, schema }) => {
      const values = (method === "DELETE" ? SPARE : THERE)[name] ?? ["1"];
      const there = fc.constantFrom(...values).map(encodeURIComponent);
      const any = written(fc.oneof(known, valuesOf(api, schema), hostile));
      return fc.oneof({ weight: 3, arbitrary: there }, { weight: 1, arbitrary: any });
    }),
  );
  const pairs = fc
    .subarray(inQuery)
    .chain((chosen) =>
      fc.tuple(
        ...chosen.map(({ name, schema }) =>
          fc.tuple(
            fc.constant(name),
            written(fc.oneof({ weight: 3, arbitrary: valuesOf(api, schema) }, { weight: 1, arbitrary: hostile })),
          ),
        ),
      ),
    );
  const strange = seldom(fc.tuple(written(hostile), written(hostile)));
  const schema = Object.values(requestBody?.content ?? {})[0]?.schema;
  const json = fc
    .oneof(
      ...(schema ? [{ weight: 6, arbitrary: valuesOf(api, schema) }] : []),
      { weight: 2, arbitrary: fc.constant({}) },
      { weight: 1, arbitrary: fc.jsonValue({ maxDepth: 4 }) },
      { weight: 1, arbitrary: fc.constantFrom(JSON.parse('{"__proto__":{"a":1}}'), [[[[[[[[]]]]]]]], null, "\u0000") },
    )
    .map((value) => JSON.stringify(value));
  const text = fc.oneof(
    { weight: 9, arbitrary: json },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        "",
        "{",
        "\u0000",
        "[".repeat(50_000),
        '{"a":1}{',
        "\ufeff{}",
        "1e999999",
        '"\\ud800"',
      ),
    },
  );
  const type = fc.oneof(
    { weight: 12, arbitrary: fc.constantFrom("application/json", "application/json; charset=utf-8") },
    {
      weight: 1,
      arbitrary: fc.constantFrom("", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"),
    },
  );
  const match = seldom(fc.constantFrom("*", `"${IMAGE.digest}"`, '"x"', "W/", '"'));
  return fc.record({ segments, pairs, strange, text, type, match }).map((given) => {
    const filled = given.segments.reduce((rest, value) => rest.replace(/\{[^}]*\}/, () => value), path);
    const all = [...given.pairs, ...(given.strange ? [given.strange] : [])];
    const query = all.map(([name, value]) => `${name}=${value}`).join("&");
    const sends = method !== "GET";
    return {
      target: `/api/v1${filled}${query === "" ? "" : `?${query}`}`,
      headers: {
        ...(sends ? { "content-type": given.type } : {}),
        ...(given.match === undefined ? {} : { "if-match": given.match, "if-none-match": given.match }),
      },
      body: sends ? given.text : undefined,
    };
  });
}

test("whatever is sent to whichever operation, the answer is one that the document tells, and no failure of the daemon", async () => {
  await using upstream = await startUpstream();
  await using sink = await startSink();
  await using registry = await startWithEverything(upstream, sink);
  const api = await Api.of(registry);
  assert.ok(api.operations.length > 15, "the document was not read");
  // What is there is found whatever chance brings after that.
  await askEveryOperation(registry, api, sink);
  // Those that take away what others ask for come last.
  const removes = ({ method, operationId }: Described): number =>
    method === "DELETE" || operationId === "purgeCache" ? 1 : 0;
  const ordered = api.operations.toSorted((a, b) => removes(a) - removes(b));
  const endMs = performance.now() + TIME_MS;
  for (const [at, described] of ordered.entries()) {
    const { method } = described;
    // An equal share of what is left. fast-check's own limit would fail where the first request takes longer than that.
    const deadlineMs = performance.now() + (endMs - performance.now()) / (ordered.length - at);
    await fc.assert(
      fc.asyncProperty(requestsOf(api, described), async ({ target, headers, body }) => {
        if (performance.now() > deadlineMs) return;
        const answer = await send(registry, method, target, headers, body);
        const told = `${method} ${target} ${body ?? ""}: ${answer.status} ${answer.bytes.subarray(0, 300).toString()}`;
        assert.ok(answer.status < 500, told);
        api.check(method, target.slice("/api/v1".length), answer);
      }),
      { numRuns: 60 },
    );
  }
  const failures = registry.log.filter(({ msg, level }) => msg === "request failed" || Number(level) >= 50);
  // The receiver refused while the content was made; and a path may lead nowhere.
  const expected = [`${new URL(sink.url).host} answered 500`, "is nothing that can be taken over"];
  assert.deepEqual(
    failures.filter((line) => !expected.some((text) => JSON.stringify(line).includes(text))),
    [],
  );
});

test("no path, no method and no target makes the daemon fail", async () => {
  await using upstream = await startUpstream();
  await using sink = await startSink();
  await using registry = await startWithEverything(upstream, sink);
  const api = await Api.of(registry);
  const targets = fc.oneof(
    fc.constantFrom(
      "/api",
      "/api/",
      "/api/v1",
      "/api/v1/",
      "/api/v2/status",
      "/api/v1//status",
      "/api/v1/status/",
      "/api/v1/./status",
    ),
    written(hostile).map((rest) => `/api/v1/${rest}`),
    fc.tuple(fc.constantFrom(...api.operations), written(hostile)).map(([{ path }, rest]) => `/api/v1${path}${rest}`),
  );
  const methods = fc.constantFrom("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND");
  await fc.assert(
    fc.asyncProperty(methods, targets, async (method, target) => {
      const answer = await send(registry, method, target, {}, undefined);
      assert.ok(answer.status < 500, `${method} ${target}: ${answer.status}`);
      if (method === "HEAD") return;
      if (target.startsWith("/api/v1/")) api.check(method, target.slice("/api/v1".length), answer);
      else assert.deepEqual([answer.status, answer.headers["content-type"]], [404, "application/problem+json"], target);
    }),
    { numRuns: 300, interruptAfterTimeLimit: 5_000, markInterruptAsFailure: false },
  );
});

test("a body of more than a MiB is refused by every operation that takes one", async () => {
  await using registry = await startRegistry();
  const api = await Api.of(registry);
  for (const { method, path } of api.operations.filter(({ requestBody }) => requestBody)) {
    const target = path.replaceAll(/\{[^}]*\}/g, "1");
    const body = `{"a":"${"x".repeat(1024 * 1024)}"}`;
    const answer = await registry.send(method, `/api/v1${target}`, { "content-type": "application/json" }, body);
    // What the path names is looked at first.
    assert.ok([413, 400].includes(answer.status), `${method} ${path}: ${answer.status}`);
    if (!path.includes("{")) assert.equal(answer.status, 413, path);
    api.check(method, target, answer);
  }
});

test("the document is whole: references lead somewhere, ids are unique, every part of a path is described", async () => {
  await using registry = await startRegistry();
  const api = await Api.of(registry);
  const { document, operations } = api;
  assert.match(String(document["openapi"]), /^3\.1\.\d+$/);
  const { title, version } = document["info"] as Json;
  assert.ok(title !== undefined && version !== undefined);
  const { schemas } = document["components"] as { schemas: Json };
  const text = JSON.stringify(document);
  const references = [...text.matchAll(/"\$ref":"([^"]*)"/g)].map(([, reference = ""]) => reference);
  assert.ok(references.length > 20);
  for (const reference of references) {
    const [, name = ""] = /^#\/components\/schemas\/([A-Za-z0-9._-]+)$/.exec(reference) ?? assert.fail(reference);
    assert.ok(name in schemas, reference);
  }
  assert.deepEqual(
    Object.keys(schemas).filter((name) => !references.includes(`#/components/schemas/${name}`)),
    [],
  );
  const ids = operations.map(({ operationId }) => operationId);
  assert.deepEqual(ids, [...new Set(ids)]);
  for (const { path, parameters, responses, method } of operations) {
    const named = [...path.matchAll(/\{([^}]*)\}/g)].map(([, name = ""]) => name);
    const described = parameters.filter(({ in: where }) => where === "path");
    assert.deepEqual(
      described.map(({ name }) => name),
      named,
      path,
    );
    assert.ok(
      described.every(({ required }) => required),
      path,
    );
    assert.ok(
      Object.keys(responses).some((status) => /^[23]/.test(status)),
      `${method} ${path} never succeeds`,
    );
    assert.ok("400" in responses && "403" in responses && "500" in responses, path);
    // Every schema is one that a reader of JSON Schema understands.
    const bodies = Object.values(responses).flatMap(({ content }) => Object.values(content ?? {}));
    for (const { schema } of [...parameters, ...bodies]) api.schema(schema);
  }
});
