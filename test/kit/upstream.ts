import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { isDigest, type Digest } from "../../src/oci/digest.ts";
import { RegistryError } from "../../src/oci/errors.ts";
import { MEDIA_TYPES, parseManifest, type Manifest } from "../../src/oci/manifest.ts";
import { parseRange } from "../../src/oci/range.ts";
import { parseRoute, type Route } from "../../src/oci/route.ts";
import { contentOf, type Content, type Image, type Index, type Published } from "./images.ts";
import { LoopbackServer, type LoggedRequest } from "./loopback.ts";
import { Authority, type UpstreamAuth } from "./upstream-auth.ts";
import { Faults, type Fault, type Gate, type Match, type Plan } from "./upstream-faults.ts";

export interface UpstreamOptions {
  auth?: UpstreamAuth;
  /** As Docker Hub has it: GETs of manifests count; with none left, manifests are answered 429. */
  rateLimit?: RateLimit;
  /** Of bodies, for each connection by itself. */
  bytesPerSecondPerConnection?: number;
  /** Before each answer's headers. */
  firstByteDelayMs?: number;
  /** Without the referrers endpoint, referrers are listed under the tag `sha256-…` of their subject. There is one unless false. */
  referrers?: boolean;
}

export interface RateLimit {
  limit: number;
  remaining: number;
  windowSeconds: number;
}

interface Repository {
  manifests: Map<Digest, Published>;
  blobs: Map<Digest, Content>;
  tags: Map<string, Digest>;
}

interface Answer {
  status: number;
  headers: Record<string, string | undefined>;
  body: Content | undefined;
  firstByte: number;
  /** One past the last. */
  endByte: number;
}

const MAX_WRITE_BYTES = 256 * 1024;
const THROTTLE_STEP_MS = 20;
const UNDISTURBED: Plan = { fault: {}, pauses: [] };
const EMPTY: Answer = { status: 200, headers: {}, body: undefined, firstByte: 0, endByte: 0 };

/** A registry to pull from, on 127.0.0.1. To be disposed of. */
export async function startUpstream(options: UpstreamOptions = {}): Promise<Upstream> {
  const upstream = new Upstream(options);
  await upstream.start();
  return upstream;
}

/**
 * A registry that serves what was added to it, correctly, unless the script says otherwise:
 * `upstream.fault({ method: "GET", path: layer.digest, times: 1 }, { cutAfter: 1000 })`.
 */
export class Upstream extends LoopbackServer {
  /** Undefined without the option; may be changed at any time. */
  readonly rateLimit: RateLimit | undefined;
  readonly #options: UpstreamOptions;
  readonly #authority: Authority | undefined;
  readonly #repositories = new Map<string, Repository>();
  readonly #faults = new Faults();
  readonly #freeAtMs = new WeakMap<Socket, number>();

  constructor(options: UpstreamOptions) {
    super();
    this.#options = options;
    this.rateLimit = options.rateLimit && { ...options.rateLimit };
    this.#authority = options.auth && new Authority(options.auth);
  }

  /** `host:port`, as it stands in an image's name. */
  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  get tokensIssued(): number {
    return this.#authority?.tokensIssued ?? 0;
  }

  /** Every token given so far is refused from now on. */
  revokeTokens(): void {
    this.#authority?.revoke();
  }

  /** Publishes an image, an index with all its images, or an artifact. Without a tag it is known by its digest alone. */
  add(repository: string, tag: string | undefined, content: Image | Index): void {
    const target = this.#repository(repository);
    for (const image of "images" in content ? content.images : [content]) {
      target.manifests.set(image.digest, image);
      for (const [digest, blob] of image.blobs) target.blobs.set(digest, blob);
    }
    this.addManifest(repository, tag, content);
  }

  /** Publishes a manifest as it is, whatever it holds; what it refers to may be missing. */
  addManifest(repository: string, tag: string | undefined, manifest: Published): void {
    const target = this.#repository(repository);
    target.manifests.set(manifest.digest, manifest);
    if (tag !== undefined) target.tags.set(tag, manifest.digest);
    if (this.#options.referrers === false) {
      const subject = readManifest(manifest)?.subject?.digest;
      if (subject) {
        const list = contentOf(referrersOf(target, subject, undefined));
        target.manifests.set(list.digest, {
          manifest: list.bytes,
          mediaType: MEDIA_TYPES.ociIndex,
          digest: list.digest,
        });
        // Source: distribution-spec, "Referrers Tag Schema": of the hex digits, 64 at most.
        target.tags.set(subject.replace(":", "-").slice(0, 71), list.digest);
      }
    }
  }

  /** Takes away one tag, manifest or blob, or without a reference the whole repository. */
  remove(repository: string, reference?: string): void {
    const target = this.#repository(repository);
    if (reference === undefined) this.#repositories.delete(repository);
    else if (isDigest(reference)) {
      target.manifests.delete(reference);
      target.blobs.delete(reference);
    } else target.tags.delete(reference);
  }

  /** Lets requests that match go wrong, from the next one on. */
  fault(match: Match, fault: Fault): void {
    this.#faults.add(match, fault);
  }

  /** No request goes wrong any more. */
  clearFaults(): void {
    this.#faults.clear();
  }

  /** Requests that match wait, before their headers or after that many bytes of their body, until they are released. */
  hold(match: Match, afterBytes?: number): Gate {
    return this.#faults.hold(match, afterBytes);
  }

  protected override async answer(logged: LoggedRequest, response: ServerResponse, signal: AbortSignal): Promise<void> {
    const route = readRoute(logged.path);
    const refusal = this.#refuse(logged, route);
    const plan = refusal ? UNDISTURBED : this.#faults.plan(logged.method, logged.path);
    const { fault } = plan;
    for (const pause of plan.pauses) if (pause.afterBytes === undefined) await pause.wait(signal);
    const delayMs = (this.#options.firstByteDelayMs ?? 0) + (fault.delayMs ?? 0);
    if (delayMs > 0) await sleep(delayMs, undefined, { signal });
    if (fault.cutAfter === "request") response.destroy();
    else
      await this.#send(
        refusal ?? scripted(fault, logged) ?? this.#find(logged, route, fault),
        plan,
        logged,
        response,
        signal,
      );
  }

  #refuse(logged: LoggedRequest, route: Route | RegistryError | undefined): Answer | undefined {
    if (logged.path === "/token") return undefined;
    const repository = route instanceof RegistryError || !route || !("name" in route) ? undefined : route.name;
    const refusal = this.#authority?.refuse(logged.headers.authorization, repository, this.url);
    return refusal && errorAnswer(new RegistryError("UNAUTHORIZED", "authentication required"), refusal.headers);
  }

  #find(logged: LoggedRequest, route: Route | RegistryError | undefined, fault: Fault): Answer {
    if (logged.path === "/token") {
      const token = this.#authority?.issue(logged.headers.authorization, logged.query.getAll("scope"));
      return token ? jsonAnswer(200, token) : errorAnswer(new RegistryError("UNAUTHORIZED", "wrong credentials"));
    }
    if (logged.method !== "GET" && logged.method !== "HEAD") {
      return errorAnswer(new RegistryError("UNSUPPORTED", "this registry can only be read"));
    }
    if (route instanceof RegistryError) return errorAnswer(route);
    if (route?.kind === "base") return jsonAnswer(200, {});
    const repository = route !== undefined && "name" in route ? this.#repositories.get(route.name) : undefined;
    switch (route?.kind) {
      case "manifest":
        return this.#manifest(repository, route.reference, logged);
      case "blob":
        return blobAnswer(repository?.blobs.get(route.digest), fault.ignoreRange ? undefined : logged.headers.range);
      case "tags":
        return tagsAnswer(repository, route.name, logged.query);
      case "referrers":
        if (this.#options.referrers === false) return textAnswer(404, "404 page not found");
        return referrersAnswer(repository, route.digest, logged.query);
      default:
        return textAnswer(404, "404 page not found");
    }
  }

  #manifest(repository: Repository | undefined, reference: string, logged: LoggedRequest): Answer {
    const limit = this.rateLimit;
    const headers: Record<string, string> = {};
    if (limit) {
      const spent = limit.remaining <= 0;
      if (!spent && logged.method === "GET") limit.remaining -= 1;
      headers["ratelimit-limit"] = `${limit.limit};w=${limit.windowSeconds}`;
      headers["ratelimit-remaining"] = `${limit.remaining};w=${limit.windowSeconds}`;
      if (spent) {
        const error = new RegistryError("TOOMANYREQUESTS", "You have reached your pull rate limit.");
        return errorAnswer(error, { ...headers, "retry-after": String(limit.windowSeconds) });
      }
    }
    const digest = isDigest(reference) ? reference : repository?.tags.get(reference);
    const found = digest === undefined ? undefined : repository?.manifests.get(digest);
    if (!found) return errorAnswer(new RegistryError("MANIFEST_UNKNOWN", "manifest unknown"), headers);
    headers["etag"] = `"${found.digest}"`;
    headers["docker-content-digest"] = found.digest;
    if (logged.headers["if-none-match"]?.includes(headers["etag"])) return { ...EMPTY, status: 304, headers };
    headers["content-type"] = found.mediaType;
    return { ...EMPTY, headers, body: contentOf(found.manifest), endByte: found.manifest.byteLength };
  }

  async #send(
    answer: Answer,
    plan: Plan,
    logged: LoggedRequest,
    response: ServerResponse,
    signal: AbortSignal,
  ): Promise<void> {
    const { fault } = plan;
    const { body, firstByte } = answer;
    const endByte = Math.min(answer.endByte, firstByte + (fault.bodyBytes ?? Infinity));
    const length = fault.contentLength ?? endByte - firstByte;
    const headers: Answer["headers"] = {
      "docker-distribution-api-version": "registry/2.0",
      ...answer.headers,
      ...(body && length !== "none" ? { "content-length": String(length) } : {}),
      // After a wrong length the connection is no use to anybody.
      ...(fault.contentLength === undefined ? {} : { connection: "close" }),
      ...fault.headers,
    };
    for (const [name, value] of Object.entries(headers)) if (value !== undefined) response.setHeader(name, value);
    response.statusCode = answer.status;
    response.flushHeaders();
    logged.status = answer.status;
    this.changed();
    if (body && logged.method !== "HEAD") {
      await this.#sendBody(body.chunks(firstByte, endByte), firstByte, plan, logged, response, signal);
    }
    response.end();
  }

  async #sendBody(
    chunks: Iterable<Buffer>,
    firstByte: number,
    { fault, pauses }: Plan,
    logged: LoggedRequest,
    response: ServerResponse,
    signal: AbortSignal,
  ): Promise<void> {
    const stops = [fault.cutAfter, ...pauses.map((pause) => pause.afterBytes)].filter((at) => typeof at === "number");
    const stop = async (): Promise<void> => {
      for (const pause of pauses) if (pause.afterBytes === logged.bytesSent) await pause.wait(signal);
      if (fault.cutAfter === logged.bytesSent) response.destroy();
      signal.throwIfAborted();
    };
    await stop();
    for (const chunk of chunks) {
      for (let at = 0; at < chunk.byteLength;) {
        const { bytesSent } = logged;
        const untilStop = Math.min(...stops.filter((stop) => stop > bytesSent)) - bytesSent;
        const piece = chunk.subarray(at, at + Math.min(this.#writeBytes, untilStop));
        await this.#throttle(piece.byteLength, response, signal);
        logged.firstByteAtMs ??= performance.now();
        await write(response, corrupted(piece, firstByte + bytesSent, fault.corruptByte), signal);
        signal.throwIfAborted();
        at += piece.byteLength;
        logged.bytesSent += piece.byteLength;
        this.changed();
        await stop();
      }
    }
  }

  get #writeBytes(): number {
    const rate = this.#options.bytesPerSecondPerConnection ?? Infinity;
    return Math.ceil(Math.min(MAX_WRITE_BYTES, (rate * THROTTLE_STEP_MS) / 1000));
  }

  async #throttle(bytes: number, response: ServerResponse, signal: AbortSignal): Promise<void> {
    const rate = this.#options.bytesPerSecondPerConnection;
    const { socket } = response;
    if (rate === undefined || socket === null) return;
    const now = performance.now();
    const freeAtMs = this.#freeAtMs.get(socket) ?? now;
    if (freeAtMs > now) await sleep(freeAtMs - now, undefined, { signal });
    // A timer that fired late is made up for, an idle connection gains nothing.
    this.#freeAtMs.set(socket, Math.max(freeAtMs, now - THROTTLE_STEP_MS) + (bytes * 1000) / rate);
  }

  #repository(name: string): Repository {
    let repository = this.#repositories.get(name);
    if (!repository) {
      repository = { manifests: new Map(), blobs: new Map(), tags: new Map() };
      this.#repositories.set(name, repository);
    }
    return repository;
  }
}

function readRoute(path: string): Route | RegistryError | undefined {
  try {
    return parseRoute(path);
  } catch (error) {
    if (error instanceof RegistryError) return error;
    throw error;
  }
}

function scripted(fault: Fault, logged: LoggedRequest): Answer | undefined {
  if (fault.redirect !== undefined) {
    const location = typeof fault.redirect === "string" ? fault.redirect : fault.redirect(logged.path);
    return { ...EMPTY, status: fault.status ?? 307, headers: { location } };
  }
  return fault.status === undefined ? undefined : jsonAnswer(fault.status, fault.body ?? {});
}

function blobAnswer(blob: Content | undefined, range: string | undefined): Answer {
  if (!blob) return errorAnswer(new RegistryError("BLOB_UNKNOWN", "blob unknown to registry"));
  const wanted = parseRange(range, blob.sizeBytes);
  if (wanted === "unsatisfiable") {
    return { ...EMPTY, status: 416, headers: { "content-range": `bytes */${blob.sizeBytes}` } };
  }
  const headers = {
    "content-type": "application/octet-stream",
    "docker-content-digest": blob.digest,
    etag: `"${blob.digest}"`,
    "accept-ranges": "bytes",
  };
  if (!wanted) return { status: 200, headers, body: blob, firstByte: 0, endByte: blob.sizeBytes };
  const { firstByte, lastByte } = wanted;
  const contentRange = `bytes ${firstByte}-${lastByte}/${blob.sizeBytes}`;
  return {
    status: 206,
    headers: { ...headers, "content-range": contentRange },
    body: blob,
    firstByte,
    endByte: lastByte + 1,
  };
}

function tagsAnswer(repository: Repository | undefined, name: string, query: URLSearchParams): Answer {
  if (!repository) return errorAnswer(new RegistryError("NAME_UNKNOWN", "repository name not known to registry"));
  const last = query.get("last") ?? "";
  const all = [...repository.tags.keys()].sort().filter((tag) => tag > last);
  const tags = query.has("n") ? all.slice(0, Number(query.get("n"))) : all;
  const more = tags.length > 0 && tags.length < all.length;
  const next = `</v2/${name}/tags/list?last=${tags.at(-1)}&n=${query.get("n")}>; rel="next"`;
  return jsonAnswer(200, { name, tags }, more ? { link: next } : {});
}

function referrersAnswer(repository: Repository | undefined, subject: Digest, query: URLSearchParams): Answer {
  const artifactType = query.get("artifactType") ?? undefined;
  const body = contentOf(referrersOf(repository, subject, artifactType));
  const headers = {
    "content-type": MEDIA_TYPES.ociIndex,
    ...(artifactType === undefined ? {} : { "oci-filters-applied": "artifactType" }),
  };
  return { ...EMPTY, headers, body, endByte: body.sizeBytes };
}

function referrersOf(repository: Repository | undefined, subject: Digest, artifactType: string | undefined): Buffer {
  const manifests = [...(repository?.manifests.values() ?? [])]
    .map((published) => ({ published, read: readManifest(published) }))
    .filter(({ read }) => read?.subject?.digest === subject)
    .filter(({ read }) => artifactType === undefined || read?.artifactType === artifactType)
    .map(({ published: { mediaType, digest, manifest }, read }) => ({
      mediaType,
      digest,
      size: manifest.byteLength,
      artifactType: read?.artifactType,
      annotations: read?.annotations,
    }));
  return Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests }));
}

/** Undefined for a manifest that is broken on purpose: it refers to nothing. */
function readManifest({ manifest, mediaType }: Published): Manifest | undefined {
  try {
    return parseManifest(manifest, mediaType);
  } catch (error) {
    if (error instanceof RegistryError) return undefined;
    throw error;
  }
}

function errorAnswer(error: RegistryError, headers: Record<string, string> = {}): Answer {
  return jsonAnswer(error.status, error, headers);
}

function jsonAnswer(status: number, value: unknown, headers: Record<string, string> = {}): Answer {
  return { ...textAnswer(status, JSON.stringify(value)), headers: { "content-type": "application/json", ...headers } };
}

function textAnswer(status: number, text: string): Answer {
  const body = contentOf(Buffer.from(text));
  return { ...EMPTY, status, headers: { "content-type": "text/plain; charset=utf-8" }, body, endByte: body.sizeBytes };
}

/** Resolves when the system has taken the piece. */
async function write(response: ServerResponse, piece: Buffer, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    // Node does not always call back for a write that a destroyed connection leaves behind.
    const gone = (): void => reject(signal.reason);
    signal.addEventListener("abort", gone, { once: true });
    response.write(piece, (error) => {
      signal.removeEventListener("abort", gone);
      if (error) reject(error);
      else resolve();
    });
  });
}

function corrupted(piece: Buffer, offset: number, corruptByte: number | undefined): Buffer {
  const at = (corruptByte ?? -1) - offset;
  if (at < 0 || at >= piece.byteLength) return piece;
  const copy = Buffer.from(piece);
  copy[at] = (copy[at] ?? 0) ^ 0xff;
  return copy;
}
