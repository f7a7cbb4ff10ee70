import type { Digest } from "../oci/digest.ts";
import type { BlobReader } from "../store/blobs.ts";
import { Flight, type FlightDeps, type FlightPlan } from "./flight.ts";

export type { FlightDeps, FlightPlan, Reservation, Space } from "./flight.ts";

export interface FlightProgress {
  digest: Digest;
  sizeBytes: number | undefined;
  receivedBytes: number;
  readers: number;
}

/** The downloads under way: one per digest, whoever asks. */
export class Downloads implements AsyncDisposable {
  readonly #deps: FlightDeps;
  readonly #flights = new Map<Digest, Flight>();
  #closed = false;

  constructor(deps: FlightDeps) {
    this.#deps = deps;
  }

  get progress(): FlightProgress[] {
    return [...this.#flights.values()].map((flight) => flight.progress);
  }

  /** Whether a download of the digest is under way that a newcomer can join. */
  has(digest: Digest): boolean {
    return this.#flights.get(digest)?.joinable === true;
  }

  /**
   * Reads a blob while it is downloaded: joins the flight of its digest, or starts one.
   * @throws RemoteError, NotAtSource, DigestMismatch where the blob can't be had
   */
  async open(plan: FlightPlan): Promise<BlobReader> {
    return this.#flight(plan).reader();
  }

  /** Starts or joins a flight and keeps it going until the returned function is called, without reading it. */
  start(plan: FlightPlan): { release: () => void; proven: Promise<void> } {
    const flight = this.#flight(plan);
    const release = flight.hold();
    return { release, proven: flight.proven() };
  }

  #flight(plan: FlightPlan): Flight {
    const running = this.#flights.get(plan.digest);
    if (running?.joinable) return running;
    if (this.#closed) throw new Error("the daemon is stopping");
    const flight = new Flight(plan, this.#deps, running?.ended);
    this.#flights.set(plan.digest, flight);
    void flight.ended.then(() => {
      if (this.#flights.get(plan.digest) === flight) this.#flights.delete(plan.digest);
    });
    return flight;
  }

  /** Stops all; what is there is kept for the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#flights.values()].map((flight) => flight.stop()));
  }
}
