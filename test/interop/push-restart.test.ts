import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { startEntrepot, UNREACHABLE } from "./entrepot.ts";
import { startGate } from "./gate.ts";
import { makeFolder, startDaemon } from "./machine.ts";
import { makeSamples } from "./samples.ts";
import { copyIn, copyOut, inspect } from "./skopeo.ts";

test("a push that ended in the middle of a layer, with its client and the daemon, works the next time", async () => {
  await using folder = await makeFolder();
  const { single } = await makeSamples(folder.path);
  const config = { upstreams: UNREACHABLE, hosted: { namespaces: ["team"] } };
  {
    await using entrepot = await startEntrepot(folder.path, config);
    await using gate = await startGate(entrepot.host);
    const shut = gate.shutAfter(single.sizeBytes / 2);
    const target = `docker://${gate.host}/team/app:v1`;
    const { daemon: client } = await startDaemon(
      "skopeo",
      ["copy", "--dest-tls-verify=false", single.source, target],
      /Copying blob/,
    );
    await shut;
    await client[Symbol.asyncDispose]();
    // The client's end of the line goes with it.
    await gate[Symbol.asyncDispose]();
    assert.equal(await entrepot.stop(), 0);
  }
  await using entrepot = await startEntrepot(folder.path, config);
  const name = `${entrepot.host}/team/app:v1`;
  await assert.rejects(inspect(name), /unknown/i, "what was never pushed whole is served");
  await copyIn(single.source, name);
  assert.equal(await copyOut(name, join(folder.path, "copy")), single.digest);
  assert.deepEqual(entrepot.refusals(500), []);
});
