/** What a command reads and writes; a test hands in its own. */
export interface CommandIo {
  stdout: NodeJS.WritableStream & { isTTY?: boolean; columns?: number };
  stderr: NodeJS.WritableStream;
  env: NodeJS.ProcessEnv;
}

/** Exit statuses of every command. */
export const DONE = 0;
export const FAILED = 1;
export const WRONG_USAGE = 2;

/** Wrong usage of a command: told with the way to the right one, and exit status 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}
