import { stripVTControlCharacters, styleText } from "node:util";
import type { CommandIo } from "./io.ts";

type Color = "green" | "yellow" | "red" | "cyan" | "bold" | "dim";

const DRAW_EVERY_MS = 50;
const PLAIN_EVERY_MS = 1000;

/**
 * Standard output of a command with progress: lines that stay, and on a terminal a block below them that is drawn again and again.
 * Elsewhere, progress is a plain line at most once a second.
 */
export class Terminal {
  readonly #out: CommandIo["stdout"];
  readonly live: boolean;
  #block: string[] = [];
  #shownAtMs = -Infinity;
  #plain = "";

  constructor(out: CommandIo["stdout"]) {
    this.#out = out;
    this.live = out.isTTY === true;
  }

  /** Characters that fit on a line. The last column stays free: some terminals wrap when it is written. */
  get width(): number {
    return Math.max(20, (this.#out.columns ?? 80) - 1);
  }

  /** Lines that a block may have: what has left the screen can't be drawn again. */
  get height(): number {
    return Math.max(1, (this.#out.rows ?? 24) - 1);
  }

  /** The text in a color, if this is a terminal that has it and NO_COLOR is not set. */
  paint(color: Color, text: string): string {
    return this.live ? styleText(color, text, { stream: this.#out }) : text;
  }

  /** Writes a line that stays, above the block. */
  print(line: string): void {
    const block = this.#block;
    this.#out.write(`${this.#erase()}${line}\n`);
    this.#draw(block);
  }

  /** Takes the block away, and writes a line that stays. */
  conclude(line: string): void {
    this.clear();
    this.print(line);
  }

  /** Shows how far things are. @param lines the block, none wider than `width`, no more than `height` @param plain the same in one line, for where no block can be drawn */
  show(lines: (width: number, height: number) => string[], plain: () => string): void {
    const nowMs = performance.now();
    if (nowMs - this.#shownAtMs < (this.live ? DRAW_EVERY_MS : PLAIN_EVERY_MS)) return;
    this.#shownAtMs = nowMs;
    if (this.live) {
      const block = lines(this.width, this.height);
      this.#out.write(this.#erase());
      this.#draw(block);
      return;
    }
    const line = plain();
    if (line !== this.#plain) this.#out.write(`${line}\n`);
    this.#plain = line;
  }

  /** Takes the block away. The next is drawn at once; where no block can be drawn, the next plain line comes after a second. */
  clear(): void {
    this.#shownAtMs = this.live ? -Infinity : performance.now();
    if (this.live) this.#out.write(this.#erase());
  }

  #draw(block: string[]): void {
    this.#block = block;
    if (block.length > 0) this.#out.write(`${block.join("\n")}\n`);
  }

  #erase(): string {
    // A terminal made narrower has wrapped what was drawn.
    const rows = this.#block.reduce(
      (sum, line) => sum + Math.max(1, Math.ceil(stripVTControlCharacters(line).length / (this.width + 1))),
      0,
    );
    this.#block = [];
    return rows === 0 ? "" : `\u001B[${rows}A\u001B[0J`;
  }
}
