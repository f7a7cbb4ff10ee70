import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { hexOf } from "../../src/oci/digest.ts";
import type { Api } from "./api.ts";
import { pushImage, pushManifest } from "./hosted.ts";
import { makeArtifact, makeImage, makeIndex, type Image } from "./images.ts";
import { startRegistry, until, type TestRegistry } from "./registry.ts";
import type { Sink } from "./sink.ts";
import type { Upstream } from "./upstream.ts";

export const IMAGE = makeImage({ layers: [3000] });
export const INDEX = makeIndex([[{ os: "linux", architecture: "amd64" }, IMAGE]]);
/** Of it nothing is hosted: else it would be no content of the cache. */
export const CACHED = makeImage({ layers: [2000], seed: 2 });
const SIGNATURE = makeArtifact({ subject: INDEX, artifactType: "application/x.sig", payload: "signed" });

const PASSWORD = "a long enough password";
const COPIES = {
  from: { registry: "self", repositories: ["team/app"] },
  to: [{ registry: "self", repository: "team/copied" }],
};
const LIMITS = [{ repositories: ["team/**"], verbs: ["pull"] }];

/** What fills an operation's path, and follows it. */
interface Asked {
  params?: Record<string, string>;
  query?: string;
  body?: object;
  /** 200 without it; of several any. */
  statuses?: number[];
  /** A list of what nothing is there of. */
  empty?: boolean;
}

/**
 * A daemon that has something for every operation: hosted repositories (team/app, and team/gone to be deleted), a cached one
 * (docker.io/library/app), a rule that keeps every tag, one that copies team/app, a webhook that works (ci) but has failures, and one that nobody answers (deaf).
 */
export async function startWithEverything(upstream: Upstream, sink: Sink): Promise<TestRegistry> {
  for (const name of ["library/app", "library/old"]) upstream.add(name, "1", CACHED);
  sink.answerWith({ status: 500 });
  const registry = await startRegistry({
    upstreams: { "docker.io": upstream },
    config: {
      // Also once there are users.
      access: { open: true, signUp: true },
      hosted: { namespaces: ["team"] },
      webhooks: [
        { name: "ci", url: `${sink.url}/hook`, attempts: 1 },
        { name: "deaf", url: "http://127.0.0.1:1/hook" },
      ],
      retention: { rules: [{ repositories: ["team/**"], keep: { tags: ["*"] } }] },
      replication: { rules: [{ name: "copies", ...COPIES }] },
    },
    leavesPartials: true,
  });
  await pushImage(registry, "team/app", IMAGE, "1");
  await pushManifest(registry, "team/app", INDEX, "2");
  await pushImage(registry, "team/app", SIGNATURE);
  for (const name of ["team/gone", "team/old"]) await pushImage(registry, name, IMAGE, "1");
  for (const name of ["library/app", "library/old"]) await registry.get(`/v2/${name}/manifests/1`);
  for (const digest of CACHED.blobs.keys()) await registry.pullBlob("library/app", digest);
  return registry;
}

/**
 * Asks every operation of the document once, well-formed, for what {@link startWithEverything} has.
 * Afterwards all of it is there still, but team/old and docker.io/library/old.
 * @throws AssertionError where an operation fails, finds nothing, or has no request here
 */
export async function askEveryOperation(registry: TestRegistry, api: Api, sink: Sink): Promise<void> {
  const requests = Object.entries(await requestsFor(registry, api, sink));
  assert.deepEqual(
    requests.map(([id]) => id).toSorted(),
    api.operations.map(({ operationId }) => operationId).toSorted(),
    "every operation needs a well-formed request here",
  );
  for (const [id, { params = {}, query = "", body = {}, statuses = [200], empty = false }] of requests) {
    const { method, path } = api.operations.find(({ operationId }) => operationId === id) ?? assert.fail(id);
    const filled = path.replaceAll(/\{([^}]*)\}/g, (_, name: string) => {
      return encodeURIComponent(params[name] ?? assert.fail(`${id}: ${name}`));
    });
    const answer = await api.send(
      method,
      `${filled}${query}`,
      method === "POST" || method === "PUT" || method === "PATCH" ? body : undefined,
    );
    const told = `${id}: ${answer.status} ${JSON.stringify(answer.events)}`;
    assert.ok(statuses.includes(answer.status), told);
    assert.ok(!answer.events.some(({ type }) => type === "failed"), told);
    const { items } = answer.body;
    if (Array.isArray(items)) assert.equal(items.length === 0, empty, told);
  }
}

/** In an order in which none takes away what the next asks for. */
async function requestsFor(registry: TestRegistry, api: Api, sink: Sink): Promise<Record<string, Asked>> {
  const repository = { repository: "team/app" };
  const old = { repository: "team/old" };
  const ci = { name: "ci" };
  const failure = await first(api, "/webhooks/ci/failures");
  // Sent once more while the receiver refuses still: a job that is dead.
  await api.expect(202, "POST", `/webhooks/ci/failures/${failure}/redeliver`);
  const dead = { id: await first(api, "/jobs?state=dead") };
  // What nobody answers is tried again and again: a job without an end.
  const endless = { id: await first(api, "/jobs?kind=webhook", ({ dedupe }) => dedupe === "deaf") };
  await api.send("POST", `/jobs/${endless.id}/pause`, {});
  const isPaused = async (): Promise<boolean> =>
    (await api.expect(200, "GET", `/jobs/${endless.id}`)).body["state"] === "paused";
  await until(isPaused, "the job without an end is paused");
  sink.answerWith({ status: 204 });
  const rule = { rule: "copies" };
  const started = await api.expect(202, "POST", "/replication/rules/copies/run");
  const run = { run: String(started.body["run"]) };
  const hasRun = async (): Promise<boolean> =>
    (await api.expect(200, "GET", `/replication/runs/${run.run}`)).body["state"] === "done";
  await until(hasRun, "the copies are there");
  return {
    describe: {},
    getStatus: {},
    getConfig: {},
    listFlights: { empty: true },
    listUpstreams: {},
    listRepositories: { query: "?kind=cached&q=app" },
    getRepository: { params: repository },
    listTags: { params: repository, query: "?prefix=1" },
    getTag: { params: { ...repository, tag: "2" } },
    getManifest: { params: { ...repository, digest: INDEX.digest } },
    listReferrers: { params: { ...repository, digest: INDEX.digest } },
    getCache: {},
    listCacheContents: { query: "?order=largest" },
    listNamespaces: {},
    getNamespace: { params: { namespace: "team" } },
    listEvents: { query: "?repository=team/app&action=push" },
    exportEvents: { query: "?repository=team/app" },
    listJobs: {},
    getJob: { params: dead },
    listJobLines: { params: dead, empty: true },
    retryJob: { params: dead },
    prioritiseJob: { params: endless },
    resumeJob: { params: endless },
    pauseJob: { params: endless, statuses: [200, 202] },
    cancelJob: { params: endless, statuses: [200, 202] },
    listWebhooks: {},
    getWebhook: { params: ci },
    listWebhookFailures: { params: ci },
    redeliverWebhookFailure: { params: { ...ci, id: failure }, statuses: [202] },
    redeliverWebhook: { params: ci, body: { from: 1 }, statuses: [202] },
    pingWebhook: { params: ci },
    listReplicationRules: {},
    getReplicationRule: { params: rule },
    planReplication: { params: rule },
    listReplicationRuns: { query: "?rule=copies" },
    getReplicationRun: { params: run },
    listReplicationRunTasks: { params: run, query: "?state=done" },
    listReplicationTasks: { query: "?rule=copies&registry=self" },
    watchReplication: {},
    undoReplicationRun: { params: run, statuses: [202] },
    pauseReplication: { params: rule, statuses: [204] },
    resumeReplication: { params: rule, statuses: [204] },
    runReplication: { params: rule, statuses: [202] },
    putReplicationRule: {
      params: { rule: "more" },
      body: { ...COPIES, to: [{ registry: "self", repository: "team/more" }] },
      statuses: [201],
    },
    deleteReplicationRule: { params: { rule: "more" }, statuses: [204] },
    whoami: {},
    createUser: { body: { name: "alice", password: PASSWORD }, statuses: [201] },
    listUsers: {},
    getUser: { params: { name: "alice" } },
    changeUser: { params: { name: "alice" }, body: { password: PASSWORD } },
    signUp: { body: { name: "bob", password: PASSWORD }, statuses: [201] },
    deleteUser: { params: { name: "bob" }, statuses: [204] },
    // Nobody has logged in, and nobody has to.
    changeOwnPassword: { body: { present: PASSWORD, password: PASSWORD }, statuses: [403] },
    setUp: { body: { token: "", name: "carol", password: PASSWORD }, statuses: [404] },
    createTeam: { body: { name: "backend", owner: "alice" }, statuses: [201] },
    listTeams: {},
    getTeam: { params: { team: "backend" } },
    changeTeam: { params: { team: "backend" }, body: { description: "APIs" } },
    setTeamMember: { params: { team: "backend", user: "alice" }, body: { role: "viewer" }, statuses: [204] },
    listTeamMembers: { params: { team: "backend" } },
    createNamespace: { body: { name: "services" }, statuses: [201] },
    changeNamespace: { params: { namespace: "services" }, body: { visibility: "public" } },
    grantNamespace: { params: { namespace: "services", team: "backend" }, body: { role: "viewer" }, statuses: [204] },
    listNamespaceGrants: { params: { namespace: "services" } },
    revokeNamespace: { params: { namespace: "services", team: "backend" }, statuses: [204] },
    deleteNamespace: { params: { namespace: "services" }, statuses: [204] },
    grantUpstream: { params: { upstream: "docker.io", team: "backend" }, statuses: [204] },
    listUpstreamGrants: { params: { upstream: "docker.io" } },
    revokeUpstream: { params: { upstream: "docker.io", team: "backend" }, statuses: [204] },
    removeTeamMember: { params: { team: "backend", user: "alice" }, statuses: [204] },
    deleteTeam: { params: { team: "backend" }, statuses: [204] },
    createRobot: { body: { name: "builds", limits: LIMITS, expires: "never" }, statuses: [201] },
    listRobots: {},
    getRobot: { params: { name: "builds" } },
    changeRobot: { params: { name: "builds" }, body: { disabled: true } },
    rotateRobot: { params: { name: "builds" }, body: { expires: "90d" } },
    deleteRobot: { params: { name: "builds" }, statuses: [204] },
    createToken: { body: { user: "alice", name: "laptop", limits: LIMITS, expires: "90d" }, statuses: [201] },
    listTokens: { query: "?user=alice" },
    deleteToken: { params: { name: "laptop" }, query: "?user=alice", statuses: [204] },
    listRetentionRules: {},
    retention: {},
    warm: { body: { images: ["library/app:1"] } },
    gc: {},
    scrub: {},
    import: { body: { path: await writeLayout(registry, IMAGE), into: "team/imported" } },
    deleteTag: { params: { ...old, tag: "1" }, statuses: [204] },
    deleteRepository: { params: old },
    purgeCache: { body: { repository: "docker.io/library/old" } },
  };
}

type Item = Record<string, unknown>;

/** @returns the id of the first of a list that fits, as soon as there is one */
async function first(api: Api, path: string, fits: (item: Item) => boolean = () => true): Promise<string> {
  let found: Item | undefined;
  await until(async () => (found = (await api.all(path)).find(fits)) !== undefined, `${path} has something`);
  return String(found?.["id"]);
}

/** @returns the folder of an OCI layout on the daemon's disk */
async function writeLayout(registry: TestRegistry, image: Image): Promise<string> {
  const path = join(registry.root, "layout");
  await mkdir(join(path, "blobs", "sha256"), { recursive: true });
  for (const { digest, bytes } of [...image.blobs.values(), { digest: image.digest, bytes: image.manifest }])
    await writeFile(join(path, "blobs", "sha256", hexOf(digest)), bytes);
  const { mediaType, digest, manifest } = image;
  const annotations = { "org.opencontainers.image.ref.name": "1" };
  const manifests = [{ mediaType, digest, size: manifest.length, annotations }];
  await writeFile(join(path, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  await writeFile(join(path, "index.json"), JSON.stringify({ schemaVersion: 2, manifests }));
  return path;
}
