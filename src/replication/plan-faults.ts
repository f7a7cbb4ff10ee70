import { Later } from "../jobs/kind.ts";
import { RemoteError } from "../remote/remote-error.ts";
import { CopyError } from "./copy-error.ts";

export interface PlanFault {
  /** `library/node`, `library/node:18`. */
  where: string;
  message: string;
}

/** What a plan could not find out: the rest of it goes on. */
export class PlanFaults {
  readonly all: PlanFault[] = [];
  readonly #waits: boolean;
  readonly #signal: AbortSignal;

  /** @param waits whether a source whose rate limit leaves nothing ends the planning */
  constructor(waits: boolean, signal: AbortSignal) {
    this.#waits = waits;
    this.#signal = signal;
  }

  add(where: string, message: string): void {
    this.all.push({ where, message });
  }

  /**
   * What goes wrong with one repository or tag is a fault of the plan; undefined then.
   * @param remedy where the registry's word is none
   * @throws Later, with `waits`; the signal's reason; what is a fault of this program
   */
  async attempt<T>(where: string, work: () => Promise<T>, remedy?: string): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      const { message } = this.#faultOf(error);
      this.add(where, remedy === undefined ? message : `${message}: ${remedy}`);
      return undefined;
    }
  }

  /** Of an error that was told as a fault before. @throws as {@link attempt} */
  toldOf(error: unknown): void {
    this.#faultOf(error);
  }

  #faultOf(error: unknown): Error {
    this.#signal.throwIfAborted();
    if (!(error instanceof Error)) throw error;
    const isFault =
      error instanceof RemoteError ||
      error instanceof CopyError ||
      (error instanceof Later && !this.#waits) ||
      error.constructor === Error ||
      error.name === "RegistryError";
    if (!isFault) throw error;
    return error;
  }
}
