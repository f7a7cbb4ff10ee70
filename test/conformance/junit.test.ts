import assert from "node:assert/strict";
import { test } from "node:test";
import { readReport } from "./junit.ts";

/** In the form that the suite writes: counts of assertions at the head, of which a case may hold several. */
const REPORT = `<testsuites time="1.5" tests="9" errors="1" failures="2" skipped="2">
  <testsuite name="OCI Conformance Test" tests="9" failures="2" errors="1" skipped="2" time="1.5">
    <properties>
      <property name="Config" value="registry: 127.0.0.1:1&#xA;"></property>
    </properties>
    <testcase name="OCI Conformance Test/ping" classname="" time="0.1" status="passed">
      <system-err>GET /v2/</system-err>
    </testcase>
    <testcase name="OCI Conformance Test/blob/put" classname="" time="0.1" status="failure">
      <system-out>expected one of [201], received 500&#xA;header &#34;Location&#34; is missing</system-out>
      <system-err>PUT &lt;testcase status=&#34;passed&#34;&gt;</system-err>
    </testcase>
    <testcase name="OCI Conformance Test/tags" classname="" time="0.1" status="error">
      <system-out>connection refused</system-out>
    </testcase>
    <testcase name="OCI Conformance Test/mount" classname="" time="0.1" status="skipped">
      <system-err>OCI Conformance Test/mount: skipping test:
  registry does not support requested API
</system-err>
    </testcase>
  </testsuite>
</testsuites>`;

test("a report is read with every case that did not pass, and why", () => {
  assert.deepEqual(readReport(REPORT), {
    passed: 4,
    failed: 3,
    skipped: 2,
    failures: [
      {
        name: "OCI Conformance Test/blob/put",
        reason: 'expected one of [201], received 500\nheader "Location" is missing',
      },
      { name: "OCI Conformance Test/tags", reason: "connection refused" },
    ],
    skips: [{ name: "OCI Conformance Test/mount", reason: "registry does not support requested API" }],
  });
});

test("a run that skips nothing says nothing of it", () => {
  const report = readReport(REPORT.replaceAll(' skipped="2"', ""));
  assert.deepEqual([report.passed, report.failed, report.skipped], [6, 3, 0]);
});

test("what is no report never passes for one", () => {
  for (const xml of [
    "",
    "<testsuites></testsuites>",
    REPORT.replaceAll('failures="2"', ""),
    REPORT.replaceAll("9", "x"),
  ])
    assert.throws(() => readReport(xml), /report/);
});
