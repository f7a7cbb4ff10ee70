import assert from "node:assert/strict";
import { test } from "node:test";
import packageJson from "../../package.json" with { type: "json" };
import { run } from "./processes.ts";

const COMMANDS = ["serve", "warm", "doctor", "config", "demo"];

test("help names every command, and each command has its own", async () => {
  const { status, stdout } = await run(["--help"]);
  assert.equal(status, 0);
  for (const command of COMMANDS) assert.match(stdout, new RegExp(`^  ${command} `, "m"));
  const helps = await Promise.all(COMMANDS.map((command) => run([command, "--help"])));
  for (const [index, help] of helps.entries()) {
    assert.equal(help.status, 0);
    assert.match(help.stdout, new RegExp(`^Usage:\\s+entrepot ${COMMANDS[index]} `));
  }
});

test("--version tells the version", async () => {
  assert.deepEqual(await run(["--version"]), { status: 0, stdout: `entrepot ${packageJson.version}\n`, stderr: "" });
});

test("an unknown command or option ends with 2 and the usage", async () => {
  const wrong: [string[], RegExp][] = [
    [["srve"], /there is no command "srve"[^]*^ {2}serve /m],
    [["toString"], /there is no command "toString"/],
    [["--prot", "5000"], /--prot[^]*Usage: entrepot serve/],
    ...COMMANDS.map((command): [string[], RegExp] => [
      [command, "--nonsense"],
      new RegExp(`Usage:\\s+entrepot ${command}`),
    ]),
  ];
  for (const { status, stdout, stderr, args, told } of await Promise.all(
    wrong.map(async ([args, told]) => ({ ...(await run(args)), args, told })),
  )) {
    assert.equal(status, 2, args.join(" "));
    assert.equal(stdout, "", args.join(" "));
    assert.match(stderr, told, args.join(" "));
  }
});
