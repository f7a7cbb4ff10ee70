import assert from "node:assert/strict";
import { test } from "node:test";
import { createLog } from "../../src/base/log.ts";

test("secrets are redacted wherever in a logged object they are, and the object itself is left alone", async () => {
  const lines: string[] = [];
  const log = await createLog({
    level: "info",
    format: "json",
    destination: { write: (line: string) => void lines.push(line) },
  });
  const facts = {
    upstream: "docker.io",
    headers: { Authorization: "Bearer hush", accept: "*/*" },
    auth: { inner: { password: "hush", username: "me" } },
    token: "hush",
  };
  log.info(facts, "asked");
  const line = lines.join("");
  assert.ok(!line.includes("hush"), line);
  assert.ok(
    line.includes('"accept":"*/*"') && line.includes('"username":"me"') && line.includes('"upstream":"docker.io"'),
    line,
  );
  assert.equal(facts.headers.Authorization, "Bearer hush");
});
