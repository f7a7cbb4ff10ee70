import { MIB } from "./content.ts";
import type { Carried, FarLineTask } from "./far-line.ts";
import type { Lab } from "./lab.ts";

export const BYTES_PER_SECOND = 40 * MIB;
export const ROUND_TRIP_MS = 30;

/** The way to a registry that is far away. */
export interface Way extends AsyncDisposable {
  port: number;
  carried(): Promise<Carried>;
}

export async function startWay(lab: Lab, targetPort: number): Promise<Way> {
  const helper = lab.startHelper("./far-line.ts");
  const ask = <Result>(task: FarLineTask): Promise<Result> => helper.ask<Result>(task);
  const line = { targetPort, bytesPerSecond: BYTES_PER_SECOND, roundTripMs: ROUND_TRIP_MS };
  return {
    port: await ask<number>({ kind: "listen", ...line }),
    carried: () => ask<Carried>({ kind: "carried" }),
    [Symbol.asyncDispose]: () => helper[Symbol.asyncDispose](),
  };
}
