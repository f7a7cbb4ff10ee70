import type { Lab, Server } from "./lab.ts";
import type { Line, Verdict } from "./table.ts";

/** What every row works with. */
export interface Bench {
  lab: Lab;
  /** A plain docker-registry that holds what rows push to it. */
  upstream: Server;
  quick: boolean;
  progress: (text: string) => void;
}

export type Row = (bench: Bench) => Promise<Line[]>;

/** Runs every measurement once a round, in turn, so that what disturbs the machine disturbs all alike. */
export async function alternate<Name extends string>(
  rounds: number,
  measurements: Record<Name, () => Promise<number>>,
): Promise<Record<Name, number[]>> {
  const samples = Object.fromEntries(Object.keys(measurements).map((name) => [name, []])) as unknown as Record<
    Name,
    number[]
  >;
  for (let round = 0; round < rounds; round++) {
    for (const name of Object.keys(measurements) as Name[]) samples[name].push(await measurements[name]());
  }
  return samples;
}

export function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low, high] = [sorted[sorted.length % 2 === 1 ? middle : middle - 1], sorted[middle]];
  if (low === undefined || high === undefined) throw new Error("a median of nothing");
  return (low + high) / 2;
}

/** @param share such as 0.99: that part of the samples is no larger */
export function percentile(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const found = sorted[Math.ceil(sorted.length * share) - 1];
  if (found === undefined) throw new Error("a percentile of nothing");
  return found;
}

export function verdict(met: boolean): Verdict {
  return met ? "PASS" : "MISS";
}

/** Of a ratio of two times or rates: a quick run is too short to tell. */
export function noisyVerdict(bench: Bench, met: boolean): Verdict {
  return bench.quick ? "not judged" : verdict(met);
}

export function times(ratio: number): string {
  return `${ratio.toFixed(ratio < 10 ? 2 : 1)} ×`;
}

export function whole(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

export function signed(value: number, digits: number): string {
  return `${value < 0 ? "−" : "+"} ${Math.abs(value).toFixed(digits)}`;
}
