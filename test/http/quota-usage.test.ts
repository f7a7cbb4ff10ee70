import assert from "node:assert/strict";
import { connect } from "node:net";
import { once } from "node:events";
import { test } from "node:test";
import * as fc from "fast-check";
import { job, select } from "../kit/hosted.ts";
import { makeImage, virtualBlob, type Content, type Image } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";

const IMAGES = [1, 2, 3].map((seed) => makeImage({ layers: [3000 * seed, 1000], seed }));
const SHARED = virtualBlob(2500, "shared");
const BLOBS: Content[] = [...new Set(IMAGES.flatMap(({ blobs }) => [...blobs.values()])), SHARED];
/** Two names of one namespace, a namespace without a quota, and names of one component. */
const REPOSITORIES = ["team/a", "team/b", "other/a", "team", "other"];
const QUOTA = 12_000;
/** After that no further run begins. */
const TIME_MS = 10_000;

/** What namespaces hold, from the rows that say what repositories reach and how large content is. */
const SCAN = `
  WITH sizes AS (SELECT digest, size FROM blobs UNION SELECT digest, size FROM manifests),
    held AS (
      SELECT DISTINCT CASE WHEN r.name LIKE '%/%' THEN substr(r.name, 1, instr(r.name, '/') - 1) ELSE r.name END AS namespace, c.digest
      FROM repositories r, repository_content c WHERE c.repository_id = r.id AND r.upstream IS NULL)
  SELECT namespace, sum(size) AS bytes FROM held JOIN sizes USING (digest) GROUP BY namespace ORDER BY namespace`;
const COUNTED = "SELECT namespace, bytes FROM namespace_usage WHERE bytes <> 0 ORDER BY namespace";

const repository = fc.constantFrom(...REPOSITORIES);
const blob = fc.constantFrom(...BLOBS);
const image = fc.constantFrom(...IMAGES);
const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant("image" as const), repository, image, tag: fc.constantFrom("1", "2") }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom("blob", "session", "wrong", "cut", "deleteBlob" as const),
      repository,
      blob,
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("mount" as const), repository, blob, from: repository }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("deleteManifest" as const), repository, image }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("gc" as const) }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

const [SMALL, , LARGE] = IMAGES as [Image, Image, Image];
/** One after the other: whatever chance brings after it, every command has succeeded, and the quota has refused. */
const EVERY_COMMAND: Step[][] = [
  [{ kind: "image", repository: "team/a", image: SMALL, tag: "1" }],
  [{ kind: "image", repository: "team/b", image: LARGE, tag: "1" }],
  [{ kind: "blob", repository: "team/a", blob: SHARED }],
  [{ kind: "mount", repository: "other/a", blob: SHARED, from: "team/a" }],
  [{ kind: "session", repository: "other", blob: SHARED }],
  [{ kind: "wrong", repository: "team/b", blob: SHARED }],
  [{ kind: "cut", repository: "team", blob: SHARED }],
  [{ kind: "deleteBlob", repository: "team/a", blob: SHARED }],
  [{ kind: "deleteManifest", repository: "team/a", image: SMALL }],
  [{ kind: "gc" }],
];
/** A command without an answer stands for itself. */
const OUTCOMES = [
  "image 201",
  "image 403",
  "blob 201",
  "mount 201",
  "session 202",
  "session 201",
  "wrong 400",
  "cut",
  "deleteBlob 202",
  "deleteManifest 202",
  "gc",
];

const pathOf = (name: string): string => `/v2/${name}/blobs/uploads/`;

async function cut(registry: TestRegistry, path: string, { bytes }: Content): Promise<void> {
  const { hostname, port } = new URL(registry.url);
  const socket = connect(Number(port), hostname);
  socket.on("error", () => undefined);
  await once(socket, "connect");
  socket.write(`POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Length: ${bytes.length}\r\n\r\n`);
  socket.end(bytes.subarray(0, bytes.length - 1));
  socket.resume();
  await once(socket, "close");
}

/** @returns the statuses of its requests */
async function take(registry: TestRegistry, one: Step): Promise<number[]> {
  const status = async (...request: Parameters<TestRegistry["send"]>): Promise<number> =>
    (await registry.send(...request)).status;
  switch (one.kind) {
    case "image": {
      const { manifest, mediaType, blobs } = one.image;
      const statuses = await Promise.all(
        [...blobs.values()].map(({ digest, bytes }) =>
          status("POST", `${pathOf(one.repository)}?digest=${digest}`, {}, bytes),
        ),
      );
      const path = `/v2/${one.repository}/manifests/${one.tag}`;
      return [...statuses, await status("PUT", path, { "content-type": mediaType }, manifest)];
    }
    case "blob":
      return [await status("POST", `${pathOf(one.repository)}?digest=${one.blob.digest}`, {}, one.blob.bytes)];
    case "wrong":
      return [await status("POST", `${pathOf(one.repository)}?digest=${one.blob.digest}`, {}, "something else")];
    case "cut":
      await cut(registry, `${pathOf(one.repository)}?digest=${one.blob.digest}`, one.blob);
      return [];
    case "session": {
      const begun = await registry.send("POST", pathOf(one.repository));
      const location = String(begun.headers["location"]);
      const half = one.blob.bytes.length >> 1;
      return [
        await status("PATCH", location, {}, one.blob.bytes.subarray(0, half)),
        await status("PUT", `${location}?digest=${one.blob.digest}`, {}, one.blob.bytes.subarray(half)),
      ];
    }
    case "mount": {
      const answer = await registry.send("POST", `${pathOf(one.repository)}?mount=${one.blob.digest}&from=${one.from}`);
      if (answer.status === 202) await registry.send("DELETE", String(answer.headers["location"]));
      return [answer.status];
    }
    case "deleteBlob":
      return [await status("DELETE", `/v2/${one.repository}/blobs/${one.blob.digest}`)];
    case "deleteManifest":
      return [await status("DELETE", `/v2/${one.repository}/manifests/${one.image.digest}`)];
    default:
      await job(registry, "gc");
      return [];
  }
}

test("after whatever pushes, mounts, deletes, failures and collections, what is counted is what a scan finds, and never over the quota", async () => {
  const seen = new Set<string>();
  const deadlineMs = performance.now() + TIME_MS;
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(step, { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 12 }),
      async (rounds) => {
        if (performance.now() > deadlineMs) return;
        await using registry = await startRegistry({
          config: {
            hosted: { namespaces: ["team", "other"], quotas: { team: QUOTA } },
            gc: { grace: "0s", interval: "0s", deleteUntagged: true },
          },
        });
        for (const round of rounds) {
          // Those of a round at the same time; one collection runs at a time.
          const together = round.filter((one, index) => one.kind !== "gc" || index === 0);
          const statuses = await Promise.all(together.map((one) => take(registry, one)));
          for (const [index, { kind }] of together.entries()) {
            const told = statuses[index] ?? [];
            if (told.length === 0) seen.add(kind);
            for (const status of told) seen.add(`${kind} ${status}`);
          }
          const counted = select(registry, COUNTED) as { namespace: string; bytes: number }[];
          assert.deepEqual(counted, select(registry, SCAN));
          const team = counted.find(({ namespace }) => namespace === "team")?.bytes ?? 0;
          assert.ok(team <= QUOTA, `${team} bytes of ${QUOTA}`);
        }
        // What failed or was cut has left nothing that counts as under way: the rest can be filled to the brim.
        const [{ bytes: used = 0 } = {}] = select(
          registry,
          "SELECT bytes FROM namespace_usage WHERE namespace = 'team'",
        ) as { bytes?: number }[];
        const filling = virtualBlob(QUOTA - used, "filling");
        if (filling.sizeBytes > 0)
          await until(
            async () =>
              (await registry.send("POST", `${pathOf("team/a")}?digest=${filling.digest}`, {}, filling.bytes))
                .status === 201,
            "what is left can be had",
          );
      },
    ),
    { numRuns: 21, examples: [[EVERY_COMMAND]], endOnFailure: true },
  );
  for (const wanted of OUTCOMES) assert.ok(seen.has(wanted), `${wanted} was not among ${[...seen].join(", ")}`);
});
