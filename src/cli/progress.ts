import type { Bytes, Milliseconds } from "../base/clock.ts";
import { barText, bytesText, cut } from "./format.ts";
import type { CommandIo } from "./io.ts";
import type { Terminal } from "./terminal.ts";

const TELL_EVERY_MS: Milliseconds = 250;

/**
 * Shows how much is done: a title, below it a bar, its share and what else there is to say.
 * @param done of `total`, in whatever unit
 * @param plain the same in one line
 */
export function showShare(
  terminal: Terminal,
  title: string,
  { done, total }: { done: number; total: number },
  more: string,
  plain: string,
): void {
  const share = total === 0 ? 1 : done / total;
  const facts = `${`${Math.floor(share * 100)}%`.padStart(4)}  ${more}`;
  terminal.show(
    (width) => [cut(title, width), `${barText(share, Math.min(40, width - facts.length - 1))} ${facts}`],
    () => `${title}: ${plain}`,
  );
}

/** Shows how far a phase of a job is. @param verb what has been done to the bytes */
export function showProgress(
  terminal: Terminal,
  { scanned, total, bytes }: { scanned: number; total: number; bytes: Bytes },
  title: string,
  verb: string,
): void {
  const read = `${bytesText(bytes)} ${verb}`;
  showShare(terminal, title, { done: scanned, total }, read, `${scanned} of about ${total}, ${read}`);
}

/** Shows how many bytes of all have been moved. */
export function showBytes(terminal: Terminal, title: string, { bytes, total }: { bytes: Bytes; total: Bytes }): void {
  const moved = `${bytesText(bytes)} of ${bytesText(total)}`;
  showShare(terminal, title, { done: bytes, total }, moved, moved);
}

/** Tells events as JSON, one a line; of progress, four a second. */
export function jsonTeller(out: CommandIo["stdout"]): (event: { type: string }) => void {
  let toldAtMs = 0;
  return (event) => {
    const nowMs = performance.now();
    if (event.type === "progress" && nowMs - toldAtMs < TELL_EVERY_MS) return;
    toldAtMs = nowMs;
    out.write(`${JSON.stringify(event)}\n`);
  };
}
