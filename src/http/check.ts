/** One thing that has to be in order for the daemon to serve. */
export interface Check {
  name: string;
  ok: boolean;
  /** What is wrong and what helps; for what is in order, its state. */
  reason: string;
  /** A check that is not needed to serve (an upstream: the cache goes on without it). */
  informative?: boolean;
}
