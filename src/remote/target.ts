/**
 * Another registry to push to: what `Remote` reads, and uploads, mounts, manifests and deletes beside it, over the same connections,
 * credentials, limits and guard.
 *
 * Invariants
 * - Bytes of a blob go out as a stream with its length told before. Such a request is sent once; who sends it asks `findUpload` where
 *   the upload stands, and goes on from there.
 * - A registry says where an upload goes on. Credentials follow only to the registry's own origin, and the guard checks each place.
 * - A failure to read what is to be sent is thrown as it is: it is not the target's, and does not count against it.
 */
import type { Clock, Milliseconds } from "../base/clock.ts";
import { algorithmOf, isDigest, type Digest } from "../oci/digest.ts";
import { formatOrigin, ORIGIN_HEADER, type Origin } from "../oci/origin.ts";
import { headerOf, isStream, type Payload } from "./exchange.ts";
import { errorCodeOf, type HostRequest } from "./host.ts";
import type { Pace } from "./pace.ts";
import { RemoteError } from "./remote-error.ts";
import {
  connect,
  HttpRemote,
  type Connection,
  type Remote,
  type RemoteDependencies,
  type RemoteOptions,
} from "./remote.ts";
import type { Endpoint, FollowedAnswer } from "./transport.ts";

/** An upload under way, as plain data: it may be kept and gone on with after a restart. */
export interface UploadSession {
  /** Where its next bytes go. */
  location: string;
  /** How many bytes the registry has. */
  offsetBytes: number;
  /** The least that a chunk but the last may hold; 0 where the registry did not tell. Source: distribution-spec, "Pushing a blob in chunks" */
  chunkMinBytes: number;
}

/** Bytes to send. */
export interface Pieces {
  lengthBytes: number;
  /** Exactly so many; what it throws is thrown on. */
  pieces: AsyncIterable<Buffer>;
}

/** What became of a manifest: stored, or refused because it refers to what is not there. */
export type StoredManifest =
  | { missing?: never; /** Whether the registry lists it among the referrers of its subject. */ listed: boolean }
  | { missing: Digest[]; /** As the registry said it; `missing` may be empty. */ cause: RemoteError };

/** All requests throw RemoteError, or the signal's reason. Names and references have been validated by the caller. */
export interface Target extends Remote {
  /**
   * Lets a repository have a blob of another one.
   * @returns "mounted"; a session where the registry starts an upload instead; undefined where it refuses
   */
  mount(
    repository: string,
    digest: Digest,
    from: string,
    options?: RemoteOptions,
  ): Promise<"mounted" | UploadSession | undefined>;
  startUpload(repository: string, digest: Digest, options?: RemoteOptions): Promise<UploadSession>;
  /** Where an upload stands. @returns undefined where the registry knows it no more */
  findUpload(repository: string, session: UploadSession, options?: RemoteOptions): Promise<UploadSession | undefined>;
  /** Sends a chunk. @returns where the upload stands then */
  append(repository: string, session: UploadSession, chunk: Pieces, options?: RemoteOptions): Promise<UploadSession>;
  /** Ends an upload, with its last bytes or without. */
  finishUpload(
    repository: string,
    session: UploadSession,
    digest: Digest,
    rest: Pieces,
    options?: RemoteOptions,
  ): Promise<void>;
  /** What the registry does not give up now, it does after a while: a failure is no error. */
  cancelUpload(repository: string, session: UploadSession): Promise<void>;
  /**
   * @param options.origin of a tag: the push that it is a copy of
   * @throws RemoteError {@link isTagNewer}: the tag has been pushed later there
   */
  putManifest(
    repository: string,
    reference: string,
    manifest: { bytes: Buffer; mediaType: string },
    options?: RemoteOptions & { origin?: Origin | undefined },
  ): Promise<StoredManifest>;
  /**
   * Deletes a tag, or a manifest with all its tags.
   * @param options.ifMatch only while it leads there; not every registry heeds that. One that does answers 412 otherwise
   * @returns whether it was there
   */
  deleteManifest(
    repository: string,
    reference: string,
    options?: RemoteOptions & { ifMatch?: Digest | undefined },
  ): Promise<boolean>;
}

/** Whether a copy was refused because its tag has been pushed later at the target. */
export function isTagNewer(error: unknown): error is RemoteError {
  return error instanceof RemoteError && error.status === 409 && error.code === "TAG_NEWER";
}

/** As `createRemote`, for a registry that is written to. @throws RemoteError unreachable for unreadable TLS files */
export async function createTarget(config: Endpoint, dependencies: RemoteDependencies): Promise<Target> {
  return new HttpTarget(await connect(config, dependencies, "pull,push"));
}

const MAX_ANSWER_BYTES = 64 * 1024;
const CANCEL_MS = 5000;
/** Some registries prove or move a large blob before they answer. */
const COMPLETION_MS: Milliseconds = 300_000;
const MISSING = /^(?:MANIFEST_BLOB_UNKNOWN|BLOB_UNKNOWN|MANIFEST_UNKNOWN)$/;

interface Ask {
  method: HostRequest["method"];
  repository: string;
  /** Under `/v2/`, or where an upload goes on. */
  place: string | URL;
  headers?: Record<string, string>;
  body?: Payload;
  from?: string;
  answerWithinMs?: Milliseconds;
  options: RemoteOptions;
}

class HttpTarget extends HttpRemote implements Target {
  readonly #connection: Connection;

  constructor(connection: Connection) {
    super(connection);
    this.#connection = connection;
  }

  async mount(
    repository: string,
    digest: Digest,
    from: string,
    options: RemoteOptions = {},
  ): Promise<"mounted" | UploadSession | undefined> {
    const query = new URLSearchParams({ mount: digest, from });
    const answer = await this.#ask({
      method: "POST",
      repository,
      place: `${repository}/blobs/uploads/?${query.toString()}`,
      headers: { "content-length": "0" },
      from,
      options,
    });
    if (answer.status === 201) return "mounted";
    if (answer.status === 202) return this.#session(answer, 0, 0);
    if (answer.status >= 400) return undefined;
    throw this.#refusal(answer, "a mount");
  }

  async startUpload(repository: string, digest: Digest, options: RemoteOptions = {}): Promise<UploadSession> {
    const algorithm = algorithmOf(digest);
    const query = algorithm === "sha256" ? "" : `?digest-algorithm=${algorithm}`;
    const answer = await this.#ask({
      method: "POST",
      repository,
      place: `${repository}/blobs/uploads/${query}`,
      headers: { "content-length": "0" },
      options,
    });
    if (answer.status !== 202) throw this.#refusal(answer, "an upload");
    return this.#session(answer, 0, 0);
  }

  async findUpload(
    repository: string,
    session: UploadSession,
    options: RemoteOptions = {},
  ): Promise<UploadSession | undefined> {
    const place = this.#placeOf(session);
    const answer = await this.#ask({ method: "GET", repository, place, options });
    if (answer.status === 404) return undefined;
    if (answer.status !== 204 && answer.status !== 200)
      throw this.#refusal(answer, "the question where an upload stands");
    return this.#session(answer, 0, session.chunkMinBytes, place);
  }

  async append(
    repository: string,
    session: UploadSession,
    chunk: Pieces,
    options: RemoteOptions = {},
  ): Promise<UploadSession> {
    const { offsetBytes, chunkMinBytes } = session;
    const endBytes = offsetBytes + chunk.lengthBytes;
    const place = this.#placeOf(session);
    const headers = { "content-range": `${offsetBytes}-${endBytes - 1}` };
    const answer = await this.#send({ method: "PATCH", repository, place, headers, options }, chunk);
    if (answer.status !== 202) throw this.#refusal(answer, "a chunk of a blob");
    return this.#session(answer, endBytes, chunkMinBytes, place);
  }

  async finishUpload(
    repository: string,
    session: UploadSession,
    digest: Digest,
    rest: Pieces,
    options: RemoteOptions = {},
  ): Promise<void> {
    const { offsetBytes } = session;
    const { lengthBytes } = rest;
    const place = this.#placeOf(session);
    place.searchParams.set("digest", digest);
    const ranged = offsetBytes > 0 && lengthBytes > 0;
    const headers = ranged ? { "content-range": `${offsetBytes}-${offsetBytes + lengthBytes - 1}` } : {};
    const answer = await this.#send({ method: "PUT", repository, place, headers, options }, rest);
    if (answer.status !== 201) throw this.#refusal(answer, `the blob ${digest}`);
  }

  async cancelUpload(repository: string, session: UploadSession): Promise<void> {
    const options = { signal: AbortSignal.timeout(CANCEL_MS) };
    const place = this.#placeOf(session);
    await this.#ask({ method: "DELETE", repository, place, options }).catch(() => undefined);
  }

  async putManifest(
    repository: string,
    reference: string,
    { bytes, mediaType }: { bytes: Buffer; mediaType: string },
    options: RemoteOptions & { origin?: Origin | undefined } = {},
  ): Promise<StoredManifest> {
    const answer = await this.#ask({
      method: "PUT",
      repository,
      place: `${repository}/manifests/${reference}`,
      headers: {
        "content-type": mediaType,
        ...(options.origin ? { [ORIGIN_HEADER]: formatOrigin(options.origin) } : {}),
      },
      body: bytes,
      options,
    });
    if (answer.status === 201) return { listed: headerOf(answer.headers, "oci-subject") !== undefined };
    const cause = this.#refusal(answer, `the manifest ${reference}`);
    if (!MISSING.test(cause.code ?? "")) throw cause;
    const named = answer.bytes.toString().match(/sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}/g) ?? [];
    return { missing: [...new Set(named as Iterable<string>)].filter((one) => isDigest(one)), cause };
  }

  async deleteManifest(
    repository: string,
    reference: string,
    { ifMatch, ...options }: RemoteOptions & { ifMatch?: Digest | undefined } = {},
  ): Promise<boolean> {
    const place = `${repository}/manifests/${reference}`;
    const headers = ifMatch === undefined ? {} : { "if-match": `"${ifMatch}"` };
    const answer = await this.#ask({ method: "DELETE", repository, place, headers, options });
    if (answer.status === 404) return false;
    if (answer.status !== 202 && answer.status !== 200) throw this.#refusal(answer, `the deletion of ${reference}`);
    return true;
  }

  async #ask({ place, repository, from, options, headers = {}, ...asked }: Ask): Promise<FollowedAnswer> {
    const { transport, authenticator, config } = this.#connection;
    const { signal } = options;
    const url = typeof place === "string" ? new URL(`${config.url}/v2/${place}`) : place;
    const kind = asked.method === "PUT" && typeof place === "string" ? "manifest" : "upload";
    const request: HostRequest = { ...asked, kind, url, headers, take: MAX_ANSWER_BYTES, patience: { signal } };
    if (url.origin !== new URL(config.url).origin) return await transport.follow(request);
    const subject = { kind: "upload", repository, from };
    const authorization = await authenticator.authorization(subject, { signal });
    const answer = await transport.follow(request, { authorization });
    if (answer.status !== 401 || answer.strayed) return answer;
    const another = await authenticator.challenged(answer.headers, authorization, subject, { signal });
    if (isStream(asked.body)) {
      // The bytes are spent; the next request of the upload has the new token.
      throw new RemoteError("interrupted", this.name, "wanted to be logged in to anew within an upload", {
        status: 401,
      });
    }
    const second = await transport.follow(request, { authorization: another });
    if (second.status === 401 && from === undefined) throw authenticator.giveUp();
    return second;
  }

  async #send(ask: Ask, { lengthBytes, pieces }: Pieces): Promise<FollowedAnswer> {
    const { clock, pace, config } = this.#connection;
    const stalled = new AbortController();
    const stall = (): void => {
      const ms = config.timeouts.progress;
      stalled.abort(new RemoteError("timeout", this.name, `took nothing of an upload for ${ms} ms`));
    };
    const { signal } = ask.options;
    const either = signal ? AbortSignal.any([signal, stalled.signal]) : stalled.signal;
    const sending = new Sending(pieces, { clock, pace, stall, progressMs: config.timeouts.progress, signal: either });
    const headers = {
      ...ask.headers,
      "content-length": String(lengthBytes),
      "content-type": "application/octet-stream",
    };
    try {
      return await this.#ask({
        ...ask,
        headers,
        // Zero bytes are no stream to undici.
        body: lengthBytes === 0 ? new Uint8Array(0) : sending,
        answerWithinMs: COMPLETION_MS,
        options: { signal: either },
      });
    } catch (error) {
      throw sending.fault ?? error;
    }
  }

  #placeOf({ location }: UploadSession): URL {
    return new URL(location);
  }

  /** @param sentBytes how far it is where the registry does not say @param before where it was, where it does not say that it moved */
  #session(answer: FollowedAnswer, sentBytes: number, chunkMinBytes: number, before?: URL): UploadSession {
    const { headers, url } = answer;
    const location = headerOf(headers, "location") ?? before?.href;
    if (location === undefined || !URL.canParse(location, url.href)) {
      throw new RemoteError("protocol", url.host, "does not say where to upload to", { status: answer.status });
    }
    const place = new URL(location, url.href);
    const own = new URL(this.#connection.config.url);
    if (own.protocol === "https:" && place.protocol === "http:") {
      if (place.hostname !== own.hostname) {
        throw new RemoteError(
          "protocol",
          url.host,
          `wants an upload over plain http (${place.host}), which is not done`,
        );
      }
      // A registry behind a proxy may not know that it is reached by https.
      place.protocol = own.protocol;
      place.port = own.port;
    }
    place.username = "";
    place.password = "";
    const least = Number(headerOf(headers, "oci-chunk-min-length"));
    return {
      location: place.href,
      offsetBytes: readOffset(headerOf(headers, "range")) ?? sentBytes,
      chunkMinBytes: Number.isSafeInteger(least) && least > 0 ? least : chunkMinBytes,
    };
  }

  #refusal({ status, bytes, url }: FollowedAnswer, what: string): RemoteError {
    const code = errorCodeOf(bytes).trim();
    const options = { status, code: code === "" ? undefined : code };
    const said = `refuses ${what} (${status}${code === "" ? "" : ` ${code}`})`;
    if (status === 507) {
      return new RemoteError("protocol", url.host, `has no room for ${what} (507): free some there`, options);
    }
    const denied = status === 401 || status === 403 || status === 451;
    if (denied) return new RemoteError("denied", url.host, `${said}: check what the credentials may write`, options);
    if (status === 405) {
      return new RemoteError("protocol", url.host, `${said}: check that it is not read-only`, options);
    }
    return new RemoteError("protocol", url.host, said, options);
  }
}

/** How many bytes `0-1023` says are there; `0-0` stands for none. */
function readOffset(range: string | undefined): number | undefined {
  const end = /^(?:bytes=)?0-(\d{1,15})$/.exec(range?.trim() ?? "")?.[1];
  if (end === undefined) return undefined;
  return end === "0" ? 0 : Number(end) + 1;
}

interface SendingOptions {
  clock: Clock;
  pace: Pace | undefined;
  progressMs: Milliseconds;
  /** Called when nobody took a piece for `progressMs`. */
  stall: () => void;
  signal: AbortSignal;
}

/** Pieces on their way out, within the bandwidth limit. */
class Sending implements AsyncIterable<Buffer> {
  readonly #pieces: AsyncIterable<Buffer>;
  readonly #options: SendingOptions;
  /** What reading the pieces failed with. */
  fault: unknown;

  constructor(pieces: AsyncIterable<Buffer>, options: SendingOptions) {
    this.#pieces = pieces;
    this.#options = options;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    const { clock, pace, progressMs, stall, signal } = this.#options;
    try {
      for await (const piece of this.#pieces) {
        const restMs = pace?.book(piece.byteLength) ?? 0;
        if (restMs > 0) await clock.sleep(restMs, signal);
        const timer = setTimeout(stall, progressMs);
        try {
          yield piece;
        } finally {
          clearTimeout(timer);
        }
      }
    } catch (error) {
      this.fault = error;
    }
    // Not the error itself, nor as its cause: one of the source's must not count as one of the target's.
    if (this.fault !== undefined) throw new Error("what was to be sent could not be read");
  }
}
