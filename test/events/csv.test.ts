import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { CSV_HEAD, csvOf } from "../../src/events/csv.ts";
import type { StoredEvent } from "../../src/events/event.ts";
import type { RepositoryName } from "../../src/oci/reference.ts";

function event(over: Partial<StoredEvent> = {}): StoredEvent {
  return {
    id: 7,
    atMs: Date.UTC(2026, 4, 1, 12, 30, 0, 5),
    action: "push",
    outcome: "denied",
    repository: "team/app" as RepositoryName,
    subject: undefined,
    tag: undefined,
    digest: undefined,
    mediaType: undefined,
    sizeBytes: 0,
    actor: "ann",
    address: "",
    agent: "docker/29",
    requestId: "req-1",
    detail: undefined,
    ...over,
  };
}

/** The records of a text, as RFC 4180 says it is read. */
function recordsOf(text: string): string[][] {
  const records: string[][] = [];
  let fields: string[] = [];
  const field = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n)/gy;
  for (let found = field.exec(text); found; found = field.exec(text)) {
    fields.push(found[1]?.replaceAll('""', '"') ?? found[2] ?? "");
    if (found[3] === ",") continue;
    records.push(fields);
    fields = [];
    if (field.lastIndex === text.length) return records;
  }
  return assert.fail(`no CSV: ${JSON.stringify(text)}`);
}

test("an event is a record under the names of its columns; what is absent is empty", () => {
  assert.equal(
    CSV_HEAD + csvOf(event({ detail: 'tag "v1", immutable' })),
    "id,at,action,outcome,repository,subject,tag,digest,mediaType,sizeBytes,actor,address,agent,requestId,detail\r\n" +
      '7,2026-05-01T12:30:00.005Z,push,denied,team/app,,,,,0,ann,,docker/29,req-1,"tag ""v1"", immutable"\r\n',
  );
});

test("what clients choose is no formula in a spreadsheet", () => {
  for (const agent of ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠1"])
    assert.equal(recordsOf(csvOf(event({ agent })))[0]?.[12], `'${agent}`, JSON.stringify(agent));
  for (const agent of ["docker/29 (=1)", "a-b", "'=1"])
    assert.equal(recordsOf(csvOf(event({ agent })))[0]?.[12], agent);
});

test("whatever its texts hold, an event is one record of as many fields as there are columns, and each text is found in it", () => {
  const text = fc.string({ unit: "binary", maxLength: 30 });
  const hostile = fc.oneof(
    text,
    fc.array(fc.constantFrom('"', ",", "\r", "\n", "=", "a", "\u0000")).map((all) => all.join("")),
  );
  fc.assert(
    fc.property(hostile, hostile, hostile, (agent, actor, detail) => {
      const records = recordsOf(CSV_HEAD + csvOf(event({ agent, actor, detail })) + csvOf(event()));
      assert.equal(records.length, 3);
      const [head = [], record = []] = records;
      assert.equal(record.length, head.length);
      for (const [name, value] of Object.entries({ agent, actor, detail })) {
        const found = record[head.indexOf(name)] ?? assert.fail(name);
        assert.ok(found === value || found === `'${value}`, JSON.stringify([found, value]));
      }
    }),
    { numRuns: 500 },
  );
});
