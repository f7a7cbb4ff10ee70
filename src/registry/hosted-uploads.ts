import type { Clock } from "../base/clock.ts";
import type { NewEvent, Requester } from "../events/event.ts";
import type { Journal } from "../events/journal.ts";
import type { Digest, DigestAlgorithm } from "../oci/digest.ts";
import type { RepositoryName } from "../oci/reference.ts";
import type { BlobStore } from "../store/blobs.ts";
import type { Catalog } from "../store/catalog.ts";
import { NotMounted, type HostedCatalog } from "../store/hosted-catalog.ts";
import type { Placement, Upload, Uploads } from "../store/uploads.ts";
import type { Usage } from "../store/usage.ts";
import type { HostedPlaces } from "./hosted-places.ts";
import type { Hosted } from "./names.ts";
import { QuotaExceeded, type Asked, type Quotas } from "./quota.ts";
import type { StoredBlobs } from "./stored-blobs.ts";

export interface HostedUploadDeps {
  catalog: Catalog;
  hosted: HostedCatalog;
  places: HostedPlaces;
  blobs: BlobStore;
  stored: StoredBlobs;
  uploads: Uploads;
  quotas: Quotas;
  usage: Usage;
  journal: Journal;
  clock: Clock;
  /** Whether the globs of its upstream let clients see a cached repository. */
  isOpen: (repository: RepositoryName) => boolean;
}

/** How blobs come into hosted repositories: in a session, in one request, or by a mount of what another repository has. */
export class HostedUploads {
  readonly #deps: HostedUploadDeps;

  constructor(deps: HostedUploadDeps) {
    this.#deps = deps;
  }

  /** @throws RegistryError DENIED: the namespace can't be hosted */
  async start(located: Hosted, algorithm: DigestAlgorithm): Promise<Upload> {
    await this.#deps.places.checkClaims(located);
    return this.#deps.uploads.start(located.repository, algorithm);
  }

  /** @throws RegistryError BLOB_UPLOAD_UNKNOWN */
  find({ repository }: Hosted, id: string): Promise<Upload> {
    return this.#deps.uploads.find(repository, id);
  }

  /** @throws RegistryError as `Uploads.append`; QuotaExceeded, the session is gone then */
  append(
    { repository }: Hosted,
    id: string,
    body: AsyncIterable<Buffer>,
    placement: Placement | undefined,
  ): Promise<Upload> {
    return this.#going(repository, id, undefined, body, placement, (admitted) =>
      this.#deps.uploads.append(repository, id, admitted, placement),
    );
  }

  /** Ends an upload: when the promise resolves, its blob is kept. @throws RegistryError as `Uploads.finish`; QuotaExceeded, the session is gone then */
  finish(
    located: Hosted,
    id: string,
    digest: Digest,
    body: AsyncIterable<Buffer> | undefined,
    placement: Placement | undefined,
  ): Promise<void> {
    const { repository } = located;
    return this.#going(repository, id, digest, body, placement, (admitted) =>
      this.#deps.uploads.finish(repository, id, digest, admitted, placement, (sizeBytes) =>
        this.#record(located, id, digest, sizeBytes),
      ),
    );
  }

  /** Goes on with a session as far as the quota lets it. One that is refused is over: what came of it is given back. */
  async #going<T, Body extends AsyncIterable<Buffer> | undefined>(
    repository: RepositoryName,
    id: string,
    digest: Digest | undefined,
    body: Body,
    placement: Placement | undefined,
    work: (body: Body | AsyncIterable<Buffer>) => Promise<T>,
  ): Promise<T> {
    const { quotas, uploads } = this.#deps;
    if (!quotas.of(repository)) return work(body);
    const { sizeBytes: hereBytes } = await uploads.find(repository, id);
    // Bytes that belong elsewhere are not taken: the client is told so, and goes on.
    const misplaced = placement?.firstByte !== undefined && placement.firstByte !== hereBytes;
    const comingBytes = body && !misplaced ? placement?.lengthBytes : 0;
    try {
      return await quotas.taking(repository, id, { digest, hereBytes, comingBytes }, body, work);
    } catch (error) {
      // Where it was refused at its very end it is gone already; what can't be removed now expires.
      if (error instanceof QuotaExceeded) await uploads.cancel(repository, id).catch(() => undefined);
      throw error;
    }
  }

  /** Takes a whole blob in one request. @throws RegistryError as `Uploads.receive`; QuotaExceeded */
  async receive(
    located: Hosted,
    digest: Digest,
    body: AsyncIterable<Buffer>,
    lengthBytes: number | undefined,
  ): Promise<void> {
    await this.#deps.places.checkClaims(located);
    const { quotas, uploads } = this.#deps;
    const upload = Symbol("an upload without a session");
    const asked: Asked = { digest, hereBytes: 0, comingBytes: lengthBytes };
    await quotas.taking(located.repository, upload, asked, body, (admitted) =>
      uploads.receive(digest, admitted, lengthBytes, (sizeBytes) => this.#record(located, upload, digest, sizeBytes)),
    );
  }

  /** @throws RegistryError BLOB_UPLOAD_UNKNOWN */
  async cancel({ repository }: Hosted, id: string): Promise<void> {
    await this.#deps.uploads.cancel(repository, id);
    this.#deps.quotas.forget(id);
  }

  /**
   * Lets the repository reach a blob that another one has, hosted or cached.
   * @param from the full name of that one; undefined: whichever has it
   * @param mayRead whether the client may read a repository: of what it may not, it learns nothing
   * @returns false where it can't: the client sends the blob itself
   * @throws QuotaExceeded: nor can that
   */
  async mount(
    located: Hosted,
    digest: Digest,
    from: RepositoryName | undefined,
    mayRead: (repository: RepositoryName) => boolean,
    by: Requester,
  ): Promise<boolean> {
    const { hosted, blobs, catalog, clock, usage, journal, quotas, places } = this.#deps;
    usage.touch(digest);
    await blobs.settled(digest);
    const source = await this.#mountSource(digest, from, mayRead);
    if (source === undefined) return false;
    const known = await catalog.findBlob(source, digest);
    if (!known?.linked) return false;
    try {
      // Its row says that it is there; a client that sends nothing relies on its file.
      (await blobs.open(digest, known.sizeBytes)).close();
    } catch {
      return false;
    }
    try {
      const { repository } = located;
      const { sizeBytes } = known;
      const event: NewEvent = { action: "mount", outcome: "done", repository, digest, sizeBytes, by, detail: source };
      const upload = Symbol("a mount");
      const asked: Asked = { digest, hereBytes: 0, comingBytes: sizeBytes };
      await quotas.taking(repository, upload, asked, undefined, () =>
        places.write(located, upload, (place) =>
          hosted.mountBlob(place, source, digest, clock.now(), (tx) => journal.recordWithin(tx, [event])),
        ),
      );
      journal.recorded();
      return true;
    } catch (error) {
      if (error instanceof NotMounted) return false;
      throw error;
    }
  }

  /** A repository from which a client could pull the blob, too. */
  async #mountSource(
    digest: Digest,
    from: RepositoryName | undefined,
    mayRead: (repository: RepositoryName) => boolean,
  ): Promise<RepositoryName | undefined> {
    const { hosted, isOpen } = this.#deps;
    const pushed = (await hosted.holders(digest, "hosted", from)).find(mayRead);
    if (pushed !== undefined) return pushed;
    return (await hosted.holders(digest, "cached", from)).find(
      (repository) => isOpen(repository) && mayRead(repository),
    );
  }

  async #record(located: Hosted, upload: string | symbol, digest: Digest, sizeBytes: number): Promise<void> {
    const { hosted, stored, catalog, blobs, clock, places } = this.#deps;
    try {
      await places.write(located, upload, (place) => hosted.addBlob(place, digest, sizeBytes, clock.now()));
    } catch (error) {
      // Its file is in place by now, and may be somebody else's content, too.
      if (error instanceof QuotaExceeded && !(await catalog.hasBlob(digest))) await blobs.remove(digest);
      throw error;
    }
    stored.proven(digest);
  }
}
