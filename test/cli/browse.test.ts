import assert from "node:assert/strict";
import { test } from "node:test";
import { pushImage } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry } from "../kit/registry.ts";
import { startUpstream } from "../kit/upstream.ts";
import { run } from "./processes.ts";

const image = makeImage({ layers: [30_000] });
const CONFIG = { hosted: { namespaces: ["team"] } };

test("repositories and tags are listed from the running daemon, as a table or as JSON", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await startRegistry({ config: CONFIG, upstreams: { "docker.io": upstream } });
  await registry.get("/v2/library/app/manifests/1");
  await pushImage(registry, "team/app", image, "1.0");
  const all = await run(["repositories", "--server", registry.url]);
  assert.equal(all.status, 0, all.stderr);
  assert.deepEqual(
    all.stdout.split("\n").map((line) => line.split(/ {2,}/)),
    [
      ["REPOSITORY", "TAGS", "FROM"],
      ["docker.io/library/app", "1", "docker.io"],
      ["team/app", "1", "hosted here"],
      [""],
    ],
  );
  const some = await run([
    "repositories",
    "team/",
    "--kind",
    "hosted",
    "--text",
    "APP",
    "--json",
    "--server",
    registry.url,
  ]);
  assert.deepEqual(
    some.stdout
      .trimEnd()
      .split("\n")
      .map((line) => (JSON.parse(line) as { name: string }).name),
    ["team/app"],
  );
  const tags = await run(["tags", "team/app", "--server", registry.url]);
  assert.match(
    tags.stdout,
    new RegExp(`\n1\\.0 +${image.digest.slice(0, 19)} +29\\.\\d KiB +20\\d\\d-\\d\\d-\\d\\d \\d\\d:\\d\\d +-\n$`),
  );
  const none = await run(["tags", "team/none", "--server", registry.url]);
  assert.equal(none.status, 1);
  assert.match(none.stderr, /answered 404: there is no repository team\/none/);
  assert.equal((await run(["repositories", "--kind", "both", "--server", registry.url])).status, 2);
});

test("purge empties the cache, and says no to what was pushed", async () => {
  await using upstream = await startUpstream();
  upstream.add("library/app", "1", image);
  await using registry = await startRegistry({ config: CONFIG, upstreams: { "docker.io": upstream } });
  await registry.get("/v2/library/app/manifests/1");
  const other = makeImage({ layers: [500], seed: "other" });
  await pushImage(registry, "team/app", other, "1");
  const refused = await run(["purge", "team/app", "--server", registry.url]);
  assert.deepEqual([refused.status, refused.stdout], [1, ""]);
  assert.match(refused.stderr, /was pushed here/);
  const purged = await run(["purge", "--upstream", "docker.io", "--server", registry.url]);
  assert.equal(purged.status, 0, purged.stderr);
  assert.match(purged.stdout, /^✓ purged 1 content: \d+ B\n$/);
  const again = await run(["purge", image.digest, "--server", registry.url]);
  assert.match(again.stderr, /answered 404: there is no sha256:/);
  for (const wrong of [[], ["a", "--upstream", "b"], ["a", "b"]])
    assert.equal((await run(["purge", ...wrong, "--server", registry.url])).status, 2, wrong.join(" "));
});

test("status tells version, storage and checks, and answers by its exit status", async () => {
  await using registry = await startRegistry({ config: CONFIG });
  const { status, stdout } = await run(["status", "--server", registry.url]);
  assert.equal(status, 0);
  assert.ok(stdout.includes(registry.root));
  assert.match(stdout, /^entrepot \S+ at http:\S+, running for /);
  assert.match(stdout, /^✓ running/m);
  const told = await run(["status", "--json", "--server", registry.url]);
  assert.equal((JSON.parse(told.stdout) as { ready: boolean }).ready, true);
  const nobody = await run(["status", "--server", "http://127.0.0.1:1"]);
  assert.equal(nobody.status, 1);
  assert.match(nobody.stderr, /no daemon answers at http:\/\/127\.0\.0\.1:1/);
});
