import { isDigest, type Digest } from "../oci/digest.ts";
import type { Remote, RemoteBody, RemoteManifest, RemoteOptions } from "../remote/remote.ts";
import { RelayedRemote } from "./relayed-remote.ts";

/** A registry whose questions are counted, as one who asks them again would have to: what has a digest, and is kept by then, is none. */
export class AskedRemote extends RelayedRemote {
  readonly #keeps: boolean;

  /** @param keeps whether content is read once, and then kept */
  constructor(remote: Remote, keeps: boolean) {
    super(remote);
    this.#keeps = keeps;
  }

  override getManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions,
  ): Promise<RemoteManifest | undefined> {
    const isKept = this.#keeps && isDigest(reference);
    return isKept
      ? this.remote.getManifest(repository, reference, options)
      : super.getManifest(repository, reference, options);
  }

  override openBlob(repository: string, digest: Digest, options?: RemoteOptions): Promise<RemoteBody | undefined> {
    return this.#keeps
      ? this.remote.openBlob(repository, digest, options)
      : super.openBlob(repository, digest, options);
  }
}
