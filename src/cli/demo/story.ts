import type { Bytes } from "../../base/clock.ts";
import { barText, bytesText, cut, timeText } from "../format.ts";
import type { CommandIo } from "../io.ts";
import { Terminal } from "../terminal.ts";

/** What the demo counts, since its start. */
export interface Meters {
  /** Bytes of bodies that the upstream sent. */
  upstreamBytes: Bytes;
  /** Bytes of bodies that all clients got. */
  clientBytes: Bytes;
}

/** What an act will move, so that its bars know their ends. */
type Expected = Meters;

interface Told {
  act: string;
  seconds: number;
  upstreamBytes: Bytes;
  clientBytes: Bytes;
  /** How the mirror answered, by kind: hit, miss, joined, stale… */
  results: Record<string, number>;
  promises: { text: string; kept: boolean }[];
}

const TICK_MS = 100;

/** Tells the demo, act by act: live bars while something moves, then what happened and which promises held. With --json, one object an act. */
export class Story {
  readonly #terminal: Terminal;
  readonly #out: CommandIo["stdout"];
  readonly #json: boolean;
  readonly #meters: () => Meters;
  readonly #results: () => Promise<Record<string, number>>;
  readonly #signal: AbortSignal;
  readonly #acts: Told[] = [];

  constructor(
    out: CommandIo["stdout"],
    json: boolean,
    meters: () => Meters,
    results: () => Promise<Record<string, number>>,
    signal: AbortSignal,
  ) {
    this.#terminal = new Terminal(out);
    this.#out = out;
    this.#json = json;
    this.#meters = meters;
    this.#results = results;
    this.#signal = signal;
  }

  get brokenPromises(): number {
    return this.#acts.flatMap(({ promises }) => promises).filter(({ kept }) => !kept).length;
  }

  get keptPromises(): number {
    return this.#acts.flatMap(({ promises }) => promises).filter(({ kept }) => kept).length;
  }

  say(text: string): void {
    if (!this.#json) this.#terminal.print(text);
  }

  heading(text: string): void {
    this.say(this.#terminal.paint("bold", text));
  }

  /**
   * Plays an act.
   * @param work does it; what it returns are the promises that it kept or broke
   * @throws the signal's reason, once it has fired
   */
  async act(
    title: string,
    intro: string,
    expected: Expected,
    work: () => Promise<[kept: boolean, text: string][]>,
  ): Promise<void> {
    this.#signal.throwIfAborted();
    this.say("");
    this.heading(`${this.#acts.length + 1}. ${title}`);
    this.say(this.#terminal.paint("dim", `   ${intro}`));
    const [before, resultsBefore, startedMs] = [this.#meters(), await this.#results(), performance.now()];
    this.#terminal.clear();
    const ticks = setInterval(() => this.#show(before, expected), TICK_MS);
    let promises: [kept: boolean, text: string][];
    try {
      promises = await work();
    } catch (error) {
      promises = [[false, `it failed: ${(error as Error).message}`]];
    } finally {
      clearInterval(ticks);
    }
    this.#signal.throwIfAborted();
    const after = this.#meters();
    const told: Told = {
      act: title,
      seconds: Math.round(performance.now() - startedMs) / 1000,
      upstreamBytes: after.upstreamBytes - before.upstreamBytes,
      clientBytes: after.clientBytes - before.clientBytes,
      results: difference(await this.#results(), resultsBefore),
      promises: promises.map(([kept, text]) => ({ text, kept })),
    };
    this.#acts.push(told);
    this.#tell(told);
  }

  #show(before: Meters, expected: Expected): void {
    if (this.#json) return;
    const now = this.#meters();
    const sent = now.upstreamBytes - before.upstreamBytes;
    const got = now.clientBytes - before.clientBytes;
    this.#terminal.show(
      (width) => {
        const bar = (label: string, bytes: Bytes, total: Bytes): string => {
          const facts = ` ${bytesText(bytes)}`;
          const barWidth = Math.max(4, Math.min(40, width - label.length - 11));
          return cut(`${label}${barText(total === 0 ? 0 : bytes / total, barWidth)}${facts}`, width);
        };
        return [
          bar("   from upstream ", sent, expected.upstreamBytes),
          bar("   to clients    ", got, expected.clientBytes),
        ];
      },
      () => `   … ${bytesText(sent)} from upstream, ${bytesText(got)} to clients`,
    );
  }

  #tell(told: Told): void {
    if (this.#json) {
      this.#out.write(`${JSON.stringify(told)}\n`);
      return;
    }
    const terminal = this.#terminal;
    terminal.clear();
    for (const { text, kept } of told.promises) {
      terminal.print(`   ${kept ? terminal.paint("green", "✓") : terminal.paint("red", "✗ BROKEN:")} ${text}`);
    }
    const results = Object.entries(told.results).map(([result, count]) => `${count} ${result}`);
    const facts = [
      timeText(told.seconds * 1000),
      `${bytesText(told.upstreamBytes)} from upstream`,
      `${bytesText(told.clientBytes)} to clients`,
      ...(results.length > 0 ? [`answers: ${results.join(", ")}`] : []),
    ];
    terminal.print(terminal.paint("cyan", `   ${facts.join(" · ")}`));
  }

  /** The end, with all acts added up. */
  end(seconds: number): void {
    const { upstreamBytes, clientBytes } = this.#meters();
    const { brokenPromises, keptPromises } = this;
    if (this.#json) {
      const sum = { ok: brokenPromises === 0, seconds, upstreamBytes, clientBytes, keptPromises, brokenPromises };
      this.#out.write(`${JSON.stringify(sum)}\n`);
      return;
    }
    this.say("");
    this.heading(
      `In ${timeText(seconds * 1000)}, clients got ${bytesText(clientBytes)}; upstream sent ${bytesText(upstreamBytes)}: ${(clientBytes / upstreamBytes).toFixed(1)} times less.`,
    );
    this.say(
      brokenPromises === 0
        ? `All ${keptPromises} promises were kept, each one checked by digests and counters.`
        : `${brokenPromises} of ${keptPromises + brokenPromises} promises were BROKEN: this is a bug, please report it.`,
    );
  }
}

function difference(after: Record<string, number>, before: Record<string, number>): Record<string, number> {
  const entries = Object.entries(after).map(([key, count]) => [key, count - (before[key] ?? 0)] as const);
  return Object.fromEntries(entries.filter(([, count]) => count > 0));
}
