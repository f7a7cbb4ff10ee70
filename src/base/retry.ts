import type { Clock, Milliseconds } from "./clock.ts";

export interface RetryPolicy {
  /** How often in all, the first try included. */
  attempts: number;
  /** Upper bound of the first pause; doubles with every further one. */
  baseMs: Milliseconds;
  maxMs: Milliseconds;
}

/**
 * The pause before try number `attempt` (1 is the first repetition): full jitter, so that many clients do not come back at once.
 * @param random in [0, 1)
 */
export function backoffMs(policy: RetryPolicy, attempt: number, random: number): Milliseconds {
  return random * Math.min(policy.maxMs, policy.baseMs * 2 ** (attempt - 1));
}

/**
 * Repeats `work` while `verdict` calls its error worth it.
 * @param verdict undefined gives up; a number waits at least that long (a server's Retry-After), in milliseconds
 * @throws the last error, or the signal's reason
 */
export async function retry<T>(
  work: (attempt: number) => Promise<T>,
  verdict: (error: unknown) => Milliseconds | undefined,
  policy: RetryPolicy,
  clock: Clock,
  signal?: AbortSignal,
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work(attempt);
    } catch (error) {
      const atLeastMs = verdict(error);
      if (atLeastMs === undefined || attempt >= policy.attempts) throw error;
      signal?.throwIfAborted();
      await clock.sleep(atLeastMs + backoffMs(policy, attempt, Math.random()), signal);
    }
  }
}
