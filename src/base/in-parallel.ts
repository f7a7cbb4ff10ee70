/**
 * Does the same with each of many things, so many at a time: what waits for its turn takes no memory.
 * @returns in the order of the things
 * @throws what the first failure is; nothing new is begun then
 */
export async function inParallel<T, R>(
  things: readonly T[],
  most: number,
  work: (thing: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = [];
  const left = things.entries();
  let failed = false;
  const takeTurns = async (): Promise<void> => {
    for (const [index, thing] of left) {
      if (failed) return;
      try {
        results[index] = await work(thing);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(most, things.length) }, takeTurns));
  return results;
}
