import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { runWebhooks } from "../../src/cli/webhooks.ts";
import { ok, startReceiver, status } from "../events/receiver.ts";
import { pushImage, select } from "../kit/hosted.ts";
import { makeImage } from "../kit/images.ts";
import { startRegistry, until } from "../kit/registry.ts";

async function run(args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const code = await runWebhooks(args, { stdout, stderr, env: {} });
  const text = (stream: PassThrough): string => (stream.read() as Buffer | null)?.toString() ?? "";
  return { status: code, stdout: text(stdout), stderr: text(stderr) };
}

test("webhooks tells how each is, and sends once more what one did not take", async () => {
  await using receiver = await startReceiver(status(500, {}, "\u001b[31mno"));
  await using registry = await startRegistry({
    config: { webhooks: [{ name: "ci", url: receiver.url, attempts: 1 }], hosted: { namespaces: ["team"] } },
  });
  const at = ["--server", registry.url];
  assert.match((await run(at)).stdout, /^ci {2}0 pending {2}never told anything {2}http:\S+\n$/);
  await pushImage(registry, "team/app", makeImage({ layers: [1000] }), "1");
  let failing = "";
  await until(async () => {
    failing = (await run(["list", ...at])).stdout;
    return failing.includes("failing since") && failing.includes(" 0 pending ");
  }, "it is set aside");
  assert.match(
    failing,
    /^ci {2}0 pending {2}never told anything {2}.*failing since .*answered 500 \(\[31mno\) {2}asked again /,
  );
  assert.match((await run(["failures", "ci", ...at])).stdout, /^1 {2}.* {2}1 of events 1 to 1 {2}.*answered 500/);
  const refused = await run(["ping", "ci", ...at]);
  assert.equal(refused.status, 1);
  assert.match(refused.stdout, /^ci did not take it: .*answered 500/);

  receiver.answer(ok);
  const pinged = await run(["ping", "ci", "--json", ...at]);
  assert.equal(pinged.status, 0);
  assert.equal((JSON.parse(pinged.stdout) as { delivered: boolean }).delivered, true);
  assert.match(
    (await run(["redeliver", "ci", ...at])).stdout,
    /^job \d+ sends failure 1: see entrepot jobs show \d+\n$/,
  );
  // The ping was one.
  await receiver.took(2);
  await until(
    () => select(registry, "SELECT redelivered_at FROM webhook_failures")[0]?.["redelivered_at"] !== null,
    "it is noted",
  );
  assert.equal((await run(["redeliver", "ci", ...at])).stdout, "", "all were sent again");
  assert.match((await run(["failures", "ci", ...at])).stdout, / {2}sent again /);
  assert.match((await run(["redeliver", "ci", "--since", "1h", "--json", ...at])).stdout, /^\{"job":\d+\}\n$/);
  await receiver.took(3);
  assert.match((await run(["redeliver", "ci", "--from", "1", "--to", "1", ...at])).stdout, /^job \d+ sends the events/);
  await receiver.took(4);
});

test("webhooks refuses what makes no sense, and names what is not there", async () => {
  await using registry = await startRegistry();
  const at = ["--server", registry.url];
  assert.deepEqual(await run(at), { status: 0, stdout: "", stderr: "" });
  for (const wrong of [
    ["nonsense"],
    ["ping"],
    ["list", "ci"],
    ["ping", "ci", "1"],
    ["redeliver", "ci", "x"],
    ["redeliver", "ci", "--to", "3"],
    ["redeliver", "ci", "1", "--from", "3"],
    ["redeliver", "ci", "--since", "soon"],
    ["list", "--since", "1h"],
  ]) {
    const { status: code, stderr } = await run([...wrong, ...at]);
    assert.equal(code, 2, wrong.join(" "));
    assert.match(stderr, /^entrepot: /);
  }
  await assert.rejects(run(["ping", "ci", ...at]), /answered 404: no webhook is called ci/);
});
