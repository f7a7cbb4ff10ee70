import assert from "node:assert/strict";
import { test } from "node:test";
import { makeImage } from "../kit/images.ts";
import { startUpstream } from "../kit/upstream.ts";
import { openRemote } from "./remotes.ts";

test("requests to a host take turns, so many a second, those that are repeated as well", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "1", makeImage({ layers: [1000] }));
  upstream.fault({ method: "HEAD", times: 2 }, { status: 503 });
  await using opened = await openRemote(upstream.url, { requests: 10 });
  const { remote, clock } = opened;
  await Promise.all(Array.from({ length: 8 }, () => remote.headManifest("team/app", "1")));
  assert.equal(upstream.requests.length, 10);
  const waits = clock.slept.filter((ms) => ms > 0).sort((a, b) => a - b);
  // Ten turns are nine tenths of a second, less what the test itself takes.
  assert.ok((waits.at(-1) ?? 0) > 500, waits.join(" "));
  assert.ok(waits.filter((ms) => ms > 300).length >= 4, waits.join(" "));
});

test("without a limit nothing waits", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "1", makeImage({ layers: [1000] }));
  await using opened = await openRemote(upstream.url);
  await Promise.all(Array.from({ length: 8 }, () => opened.remote.headManifest("team/app", "1")));
  assert.deepEqual(opened.clock.slept, []);
});

test("who gives up while waiting for a turn is told at once", async () => {
  await using upstream = await startUpstream();
  upstream.add("team/app", "1", makeImage({ layers: [1000] }));
  await using opened = await openRemote(upstream.url, { requests: 1 });
  const { remote, clock } = opened;
  const given = new AbortController();
  clock.sleep = async (_, signal?: AbortSignal) => {
    given.abort(new Error("enough"));
    signal?.throwIfAborted();
  };
  await remote.headManifest("team/app", "1");
  await assert.rejects(remote.headManifest("team/app", "1", { signal: given.signal }), /enough/);
  assert.equal(upstream.requests.length, 1);
});
