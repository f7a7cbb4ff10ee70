import assert from "node:assert/strict";
import { mkdtempDisposable } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { change, pushImage, select } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import { RawConnection } from "./raw.ts";

/** What a dry run of retention tells of them is 1.4 MB. */
const TAGS = 10_000;
const BODY = '{"dryRun":true}';

interface Listening extends AsyncDisposable {
  registry: TestRegistry;
  /** Asks for a dry run of retention. */
  ask(): RawConnection;
}

/** A daemon with many tags at a Unix socket: the kernel buffers little of it, and of TCP up to 37 MiB. */
async function startWithTags(progress: { minBytes: string; interval: string }): Promise<Listening> {
  await using stack = new AsyncDisposableStack();
  const { path: root } = stack.use(await mkdtempDisposable(join(tmpdir(), "entrepot-")));
  const hosted = { namespaces: ["team"] };
  {
    await using registry = await startRegistry({ root, config: { hosted } });
    await pushImage(registry, "team/app", makeImage({ layers: [100] }), "0");
    change(
      registry,
      `WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
       INSERT INTO tags (repository_id, name, digest, updated_at, checked_at)
       SELECT t.repository_id, n, t.digest, t.updated_at - n, t.checked_at FROM tags t, numbers`,
      TAGS - 1,
    );
  }
  const path = join(root, "socket");
  const rules = [{ repositories: ["team/**"], keep: { latestPushed: 1 } }];
  const server = { listen: `unix:${path}`, progress };
  const config = { server, hosted, retention: { schedule: "never", rules } };
  const registry = stack.use(await startRegistry({ root, config }));
  const owned = stack.move();
  return {
    registry,
    ask: () => {
      const connection = new RawConnection(connect(path));
      connection.send(
        "POST /api/v1/retention HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        `Content-Length: ${BODY.length}`,
        "Connection: close",
      );
      connection.socket.write(BODY);
      return connection;
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

test("who asks for a job and takes nothing of what it tells is cut: the job ends, and another may begin", async () => {
  await using listening = await startWithTags({ minBytes: "16KiB", interval: "300ms" });
  const { registry } = listening;
  using stalled = listening.ask();
  stalled.socket.pause();
  await registry.until(() => registry.log.some(({ code, handler }) => code === 499 && handler === "api"), "it was cut");
  assert.deepEqual(select(registry, "SELECT kind, state FROM jobs"), [{ kind: "retention", state: "cancelled" }]);
  using next = listening.ask();
  await next.closed;
  assert.match(next.text.slice(-1000), new RegExp(`"type":"done".*"removed":${TAGS - 1},`));
});

test("who takes slowly what a job tells, but takes it, is told of its end", async () => {
  await using listening = await startWithTags({ minBytes: "1KiB", interval: "500ms" });
  using slow = listening.ask();
  slow.socket.on("data", () => {
    slow.socket.pause();
    setTimeout(() => slow.socket.resume(), 50);
  });
  await slow.closed;
  assert.match(slow.text.slice(-1000), /"type":"done"/);
});
