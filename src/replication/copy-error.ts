/**
 * Why an image could not be copied, where neither registry failed.
 * - missing: the source does not have it; wrong: what the source sent is not what its digest, size or type says
 * - conflict: the tag at the target names something else, and may not be moved
 * - sparse: the target refuses an index without all of its platforms; platform: nothing of it is wanted
 */
export type CopyFault = "missing" | "wrong" | "conflict" | "sparse" | "platform";

export class CopyError extends Error {
  override readonly name = "CopyError";
  readonly fault: CopyFault;

  constructor(fault: CopyFault, message: string, options?: ErrorOptions) {
    super(message, options);
    this.fault = fault;
  }
}
