import { readFile } from "node:fs/promises";
import { UsageError } from "./io.ts";

/** Beyond any password: what is piped in by mistake is not read into memory. */
const MAX_CHARACTERS = 4096;

/**
 * A new password: of standard input, of a file, or asked for twice on a terminal.
 * @param what is asked for: `password of alice`
 * @throws UsageError where there is none of these; Error where what is typed differs, or the file can't be read
 */
export async function readNewPassword(
  { stdin, file }: { stdin: boolean; file: string | undefined },
  what: string,
): Promise<string> {
  if (stdin && file !== undefined) throw new UsageError("write either --password-stdin or --password-file");
  if (file !== undefined) return withoutLineBreak(await readFile(file, "utf8"));
  if (stdin) return withoutLineBreak(await readAll());
  if (!process.stdin.isTTY)
    throw new UsageError(
      "there is no terminal to ask for the password: write --password-stdin or --password-file FILE",
    );
  const [first = "", again] = await ask([`${what}: `, "the same again: "]);
  if (again !== first) throw new Error("the two differ: nothing is changed");
  return first;
}

/** Editors and echo end a text with a line break, which is no part of it. */
function withoutLineBreak(text: string): string {
  return text.replace(/\r?\n$/, "");
}

async function readAll(): Promise<string> {
  let text = "";
  process.stdin.setEncoding("utf8");
  for await (const chunk of process.stdin as AsyncIterable<string>) {
    text += chunk;
    if (text.length > MAX_CHARACTERS)
      throw new UsageError(`standard input holds more than ${MAX_CHARACTERS} characters`);
  }
  return text;
}

/** Asks one thing after the other on the terminal, and shows nothing of the answers. */
async function ask(prompts: readonly string[]): Promise<string[]> {
  const { stdin, stderr } = process;
  const answers: string[] = [];
  let typed: string[] = [];
  const { promise, resolve, reject } = Promise.withResolvers<string[]>();
  const take = (character: string): void => {
    if (answers.length === prompts.length) return;
    if (character === "\r" || character === "\n") {
      answers.push(typed.join(""));
      typed = [];
      stderr.write(`\n${prompts[answers.length] ?? ""}`);
      if (answers.length === prompts.length) resolve(answers);
    }
    // Ctrl-C, and Ctrl-D.
    else if (character === "\u0003" || character === "\u0004") {
      stderr.write("\n");
      reject(new Error("nothing is changed"));
    } else if (character === "\u007F" || character === "\b") typed.pop();
    // Ctrl-U begins anew, as where the terminal reads lines itself.
    else if (character === "\u0015") typed = [];
    else typed.push(character);
  };
  const read = (text: string): void => {
    for (const character of text) take(character);
  };
  // Before the first prompt: whoever sees that may type, and is not to be seen.
  stdin.setRawMode(true);
  stdin.setEncoding("utf8").on("data", read).resume();
  stderr.write(prompts[0] ?? "");
  try {
    return await promise;
  } finally {
    stdin.off("data", read).pause();
    stdin.setRawMode(false);
  }
}
