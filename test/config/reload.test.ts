import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/config/load.ts";
import { planReload } from "../../src/config/reload.ts";

const hub = { url: "https://hub.example.com" };

test("what can change changes, what can't is named, and stays named until the restart", () => {
  const running = parseConfig({ upstreams: { "docker.io": hub, "gone.io": { url: "https://gone.example.com" } } });
  const next = parseConfig({
    server: { listen: ":1234" },
    log: { level: "debug", format: "json" },
    storage: { cacheMaxSize: "1GiB" },
    upstreams: {
      "docker.io": { ...hub, tagTtl: "1m", ranges: { connections: 1 }, connections: 9 },
      "new.io": { url: "https://new.example.com" },
    },
  });
  const first = planReload(running, next);
  const live = [
    "log.level",
    "storage.cacheMaxSize",
    "upstreams.docker.io.tagTtl",
    "upstreams.docker.io.ranges.connections",
  ];
  assert.deepEqual(new Set(first.changed), new Set(live));
  const waiting = new Set([
    "server.listen",
    "log.format",
    "upstreams.docker.io.connections",
    "upstreams.gone.io",
    "upstreams.new.io",
  ]);
  assert.deepEqual(new Set(first.needRestart), waiting);
  assert.equal(first.config.upstreams["docker.io"]?.tagTtl, 60_000);
  assert.equal(first.config.upstreams["docker.io"]?.connections, 16);
  assert.equal(first.config.upstreams["new.io"], undefined);

  const second = planReload(first.config, next);
  assert.deepEqual(second.changed, []);
  assert.deepEqual(new Set(second.needRestart), waiting);
  assert.deepEqual(planReload(first.config, first.config).needRestart, []);
});

test("who may do what changes at once, except for where passwords lie and what tokens are issued for", () => {
  const running = parseConfig({ access: { open: false, htpasswd: { path: "/one" } } });
  const next = parseConfig({
    server: { tls: { certificate: "/crt", key: "/key" } },
    upstreams: { "docker.io": { visibility: "protected" } },
    access: { htpasswd: { path: "/two" }, signUp: true, tokens: { life: "2m", service: "other" }, metrics: "login" },
  });
  const { changed, needRestart, config } = planReload(running, next);
  assert.deepEqual(
    new Set(changed),
    new Set(["access.open", "access.signUp", "access.tokens.life", "access.metrics", "upstreams.docker.io.visibility"]),
  );
  assert.deepEqual(new Set(needRestart), new Set(["access.htpasswd.path", "access.tokens.service", "server.tls"]));
  assert.equal(config.access.htpasswd?.path, "/one");
});
