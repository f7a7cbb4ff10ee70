import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { place, serve } from "../cli/processes.ts";
import { readReport, type NamedReason } from "./junit.ts";

/**
 * The suite is a program of the distribution-spec's own repository, and is not part of this one.
 * These tests were written against its commit 967efdc079b9; its README says how it is made.
 */
const REMEDY =
  "CONFORMANCE_SUITE has to name the program of the OCI distribution-spec's conformance suite: " +
  "see conformance/README.md of https://github.com/opencontainers/distribution-spec (commit 967efdc079b9)";

/** A run takes about ten seconds. */
const PATIENCE_MS = 300_000;

/** Fewer would mean that a part of it is switched off, or takes a feature for missing. */
const LEAST_PASSED = 986;

/**
 * Everything that the development version can ask for, said outright, so that a change of its defaults switches nothing off.
 * Off is `DATA_SPARSE` alone: it wants manifests accepted whose blobs are missing, which a registry may refuse, as Entrepot does.
 */
const FEATURES = [
  "API_PING",
  "API_PULL",
  "API_PUSH",
  "API_BLOBS_ATOMIC",
  "API_BLOBS_DELETE",
  "API_BLOBS_DIGEST_HEADER",
  "API_BLOBS_MOUNT_ANONYMOUS",
  "API_BLOBS_UPLOAD_CANCEL",
  "API_MANIFESTS_ATOMIC",
  "API_MANIFESTS_DELETE",
  "API_MANIFESTS_DIGEST_HEADER",
  "API_MANIFESTS_TAG_PARAM",
  "API_TAGS_ATOMIC",
  "API_TAGS_DELETE",
  "API_TAGS_LIST",
  "API_REFERRER",
  "DATA_IMAGE",
  "DATA_INDEX",
  "DATA_INDEX_LIST",
  "DATA_ARTIFACT",
  "DATA_SUBJECT",
  "DATA_SUBJECT_MISSING",
  "DATA_ARTIFACT_LIST",
  "DATA_SUBJECT_LIST",
  "DATA_DATA_FIELD",
  "DATA_NONDISTRIBUTABLE",
  "DATA_CUSTOM_FIELDS",
  "DATA_NO_LAYERS",
  "DATA_EMPTY_BLOB",
  "DATA_SHA512",
];

/** @returns its report as XML; its exit status is no matter, for it is 0, too, where the suite could not begin */
async function runSuite(suite: string, host: string, folder: string): Promise<string> {
  const results = join(folder, "results");
  const { promise, resolve } = Promise.withResolvers<string>();
  execFile(
    suite,
    {
      cwd: folder,
      timeout: PATIENCE_MS,
      env: {
        PATH: process.env["PATH"],
        OCI_VERSION: "dev",
        OCI_REGISTRY: host,
        OCI_TLS: "disabled",
        OCI_REPO1: "conformance/repo1",
        OCI_REPO2: "conformance/repo2",
        OCI_RESULTS_DIR: results,
        OCI_LOG: "error",
        ...Object.fromEntries(FEATURES.map((feature) => [`OCI_${feature}`, "true"])),
      },
      maxBuffer: 64 * 1024 * 1024,
    },
    (error, stdout, stderr) => resolve(`${error?.message ?? ""}\n${stdout}${stderr}`),
  );
  const output = await promise;
  return readFile(join(results, "junit.xml"), "utf8").catch((cause: unknown) => {
    throw new Error(`the conformance suite wrote no report:\n${output}`, { cause });
  });
}

function told(cases: NamedReason[]): string {
  return cases.map(({ name, reason }) => `  ${name}: ${reason}`).join("\n");
}

test("the official conformance suite finds no fault, with everything of the development version on", async (context) => {
  const suite = process.env["CONFORMANCE_SUITE"];
  assert.ok(suite, REMEDY);
  await using where = await place({ upstreams: {}, hosted: { namespaces: ["conformance"] } });
  await using daemon = await serve(["--config", where.config]);
  const report = readReport(await runSuite(suite, new URL(daemon.address).host, where.path));
  context.diagnostic(`${report.passed} assertions passed, ${report.failed} failed, ${report.skipped} skipped`);
  for (const { name, reason } of report.skips) context.diagnostic(`skipped ${name}: ${reason}`);
  assert.equal(report.failed, 0, `the conformance suite found faults:\n${told(report.failures)}`);
  assert.ok(report.passed >= LEAST_PASSED, `${report.passed} assertions passed, fewer than ${LEAST_PASSED}`);
});
