import assert from "node:assert/strict";
import { test } from "node:test";
import { serverSentTexts, type ServerSent } from "../../../src/http/api/server-sent.ts";

test("what is told is told at once, and in between that nothing is", { timeout: 5000 }, async () => {
  const { promise: left, resolve: leave } = Promise.withResolvers<void>();
  const one: ServerSent = { id: 7, event: "run", data: { state: "done", text: "two\nlines" } };
  const events = (async function* () {
    yield one;
    await left;
  })();
  const texts = serverSentTexts(events, 1);
  const next = async (): Promise<string | undefined> => (await texts.next()).value ?? undefined;
  assert.equal(await next(), "retry: 1000\n\n", "the head goes out before anything happens");
  assert.equal(await next(), `id: 7\nevent: run\ndata: {"state":"done","text":"two\\nlines"}\n\n`);
  assert.equal(await next(), ":\n\n");
  assert.equal(await next(), ":\n\n");
  leave();
  let rest = await next();
  while (rest === ":\n\n") rest = await next();
  assert.equal(rest, undefined);
});
