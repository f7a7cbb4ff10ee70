import type { Milliseconds } from "../base/clock.ts";
import type { Note } from "./queue.ts";

/** More than that in the second between two writes are dropped, the oldest first: the row's own log keeps no more. */
const MOST_LINES = 1_000;

/** What a run has told and nobody has written yet. */
export class Notes {
  #progress: unknown;
  #lines: { atMs: Milliseconds; text: string }[] = [];

  get isEmpty(): boolean {
    return this.#progress === undefined && this.#lines.length === 0;
  }

  progress(event: unknown): void {
    this.#progress = event;
  }

  line(atMs: Milliseconds, text: string): void {
    this.#lines.push({ atMs, text });
    if (this.#lines.length >= 2 * MOST_LINES) this.#lines = this.#lines.slice(-MOST_LINES);
  }

  /** What is to be written. It is kept until {@link written}: the database may refuse it. */
  get note(): Note {
    return { progress: this.#progress, lines: this.#lines.slice(-MOST_LINES) };
  }

  /** Forgets what this note held. */
  written(note: Note): void {
    if (this.#progress === note.progress) this.#progress = undefined;
    const last = note.lines.at(-1);
    if (last) this.#lines.splice(0, this.#lines.indexOf(last) + 1);
  }
}
