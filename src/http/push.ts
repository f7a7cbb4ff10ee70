import type { IncomingMessage } from "node:http";
import type { Requester } from "../events/event.ts";
import { parseDigest, type DigestAlgorithm } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { MAX_MANIFEST_BYTES } from "../oci/manifest.ts";
import { ORIGIN_HEADER, parseOrigin, type Origin } from "../oci/origin.ts";
import { isTag, parseRepositoryName, type RepositoryName, type Tag } from "../oci/reference.ts";
import type { Route } from "../oci/route.ts";
import type { Gate } from "../registry/gate.ts";
import type { HostedRepositories } from "../registry/hosted.ts";
import type { Hosted, Located } from "../registry/names.ts";
import type { Quotas } from "../registry/quota.ts";
import type { TagCondition } from "../registry/tag-guard.ts";
import type { Placement, Upload } from "../store/uploads.ts";
import { bodyOf, readBody } from "./body.ts";
import { API_VERSION, warningValue, type Exchange } from "./exchange.ts";
import type { ProgressRule } from "./send.ts";

export interface PushDeps {
  hosted: HostedRepositories;
  gate: Gate;
  quotas: Quotas;
  locate: (name: RepositoryName) => Located;
  progress: ProgressRule;
  /** Answered in front of every Location: `https://registry.example.com`, or nothing. */
  publicUrl: string | undefined;
  /** Told to clients that upload in chunks; 0: nothing is told. */
  chunkMinLength: () => number;
}

export type Written = Extract<Route, { kind: "manifest" | "blob" | "uploads" | "upload" }>;

const MAX_TAGS = 100;
const CONTENT_RANGE = /^(?:bytes[ =])?(\d{1,16})-(\d{1,16})(?:\/(?:\d{1,16}|\*))?$/;

/** The writing half of the OCI distribution API: uploads, mounts, manifests, deletes. */
export class Push {
  readonly #deps: PushDeps;

  constructor(deps: PushDeps) {
    this.#deps = deps;
  }

  /**
   * Answers a request that writes, or that asks about an upload.
   * @throws RegistryError UNAUTHORIZED, DENIED where the caller may not; as the parts of `HostedRepositories`
   */
  async handle(exchange: Exchange, route: Written, found: Hosted, by: Requester): Promise<void> {
    const { method, caller } = exchange;
    const { gate } = this.#deps;
    gate.check(caller, found, method === "DELETE" && route.kind !== "upload" ? "delete" : "create");
    const located = gate.placeOf(caller, found);
    if (route.kind === "uploads" && method === "POST") return this.#start(exchange, route.name, located, by);
    if (route.kind === "upload") {
      if (method === "PATCH") return this.#append(exchange, route, located);
      if (method === "PUT") return this.#finish(exchange, route, located);
      if (method === "GET" || method === "HEAD") return this.#status(exchange, route, located);
      if (method === "DELETE") {
        await this.#deps.hosted.uploads.cancel(located, route.id);
        return this.#answer(exchange, 204, {});
      }
    }
    if (route.kind === "manifest" && method === "PUT") return this.#manifest(exchange, route, located, by);
    if (route.kind === "manifest" && method === "DELETE") {
      await this.#deps.hosted.deletion.manifest(located, route.reference, conditionOf(exchange.request), by);
      return this.#answer(exchange, 202, { "content-length": 0 });
    }
    if (route.kind === "blob" && method === "DELETE") {
      await this.#deps.hosted.deletion.blob(located, route.digest, by);
      return this.#answer(exchange, 202, { "content-length": 0 });
    }
    throw new RegistryError("UNSUPPORTED", `${method} is not supported here`);
  }

  // ---- uploads ----

  async #start(exchange: Exchange, name: RepositoryName, located: Hosted, by: Requester): Promise<void> {
    const { hosted, gate, chunkMinLength } = this.#deps;
    const { query, request } = exchange;
    const mount = query.get("mount");
    const mayRead = (repository: RepositoryName): boolean => gate.mayRead(exchange.caller, repository);
    if (mount !== null) {
      const digest = parseDigest(mount);
      const from = query.get("from");
      const source = from === null || from === "" ? undefined : this.#sourceOf(from);
      if (source !== null && (await hosted.uploads.mount(located, digest, source, mayRead, by))) {
        exchange.note({ result: "mounted" });
        await this.#warn(exchange, located);
        return this.#created(exchange, `/v2/${name}/blobs/${digest}`, digest);
      }
    }
    const whole = query.get("digest");
    if (whole !== null && mount === null) {
      const digest = parseDigest(whole);
      const body = this.#body(exchange);
      await hosted.uploads.receive(located, digest, body, lengthOf(request));
      await this.#warn(exchange, located);
      return this.#created(exchange, `/v2/${name}/blobs/${digest}`, digest);
    }
    const upload = await hosted.uploads.start(located, algorithmOf(query.get("digest-algorithm")));
    await this.#warn(exchange, located);
    const least = chunkMinLength();
    this.#answer(exchange, 202, {
      ...this.#session(name, upload),
      "content-length": 0,
      ...(least > 0 ? { "oci-chunk-min-length": least } : {}),
    });
  }

  /** @returns undefined: none was named; null: no such name, and so nothing to mount from */
  #sourceOf(from: string): RepositoryName | null {
    try {
      return this.#deps.locate(parseRepositoryName(from)).repository;
    } catch (error) {
      if (error instanceof RegistryError) return null;
      throw error;
    }
  }

  async #append(exchange: Exchange, { name, id }: Extract<Route, { kind: "upload" }>, located: Hosted): Promise<void> {
    const { request } = exchange;
    await this.#deps.hosted.uploads.find(located, id);
    const body = this.#body(exchange);
    const upload = await this.#keepingPlace(exchange, name, id, located, () =>
      this.#deps.hosted.uploads.append(located, id, body, placementOf(request)),
    );
    await this.#warn(exchange, located);
    this.#answer(exchange, 202, { ...this.#session(name, upload), "content-length": 0 });
  }

  async #finish(exchange: Exchange, { name, id }: Extract<Route, { kind: "upload" }>, located: Hosted): Promise<void> {
    const { hosted } = this.#deps;
    const { request, query } = exchange;
    await hosted.uploads.find(located, id);
    const wanted = query.get("digest");
    if (wanted === null) {
      throw new RegistryError("DIGEST_INVALID", "the digest of the blob is missing: end an upload with ?digest=…");
    }
    const digest = parseDigest(wanted);
    const body = hasBody(request) ? this.#body(exchange) : undefined;
    await this.#keepingPlace(exchange, name, id, located, () =>
      hosted.uploads.finish(located, id, digest, body, placementOf(request)),
    );
    await this.#warn(exchange, located);
    this.#created(exchange, `/v2/${name}/blobs/${digest}`, digest);
  }

  async #status(exchange: Exchange, { name, id }: Extract<Route, { kind: "upload" }>, located: Hosted): Promise<void> {
    const upload = await this.#deps.hosted.uploads.find(located, id);
    this.#answer(exchange, 204, this.#session(name, upload));
  }

  #body(exchange: Exchange): AsyncGenerator<Buffer, void, undefined> {
    return bodyOf(exchange.request, this.#deps.progress, (bytes) => exchange.note({ bytes }));
  }

  /** An upload that is refused for its place (416) is told, with the refusal, where it stands: distribution-spec, "Pushing a blob in chunks". */
  async #keepingPlace<T>(
    exchange: Exchange,
    name: RepositoryName,
    id: string,
    located: Hosted,
    work: () => Promise<T>,
  ): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (error instanceof RegistryError && error.status === 416) {
        const upload = await this.#deps.hosted.uploads.find(located, id);
        for (const [header, value] of Object.entries(this.#session(name, upload))) {
          exchange.response.setHeader(header, value);
        }
      }
      throw error;
    }
  }

  #session(name: RepositoryName, { id, sizeBytes }: Upload): Record<string, string> {
    return {
      location: this.#location(`/v2/${name}/blobs/uploads/${id}`),
      "docker-upload-uuid": id,
      // Of nothing there is no last byte; 0-0 is what clients expect to read.
      range: `0-${Math.max(0, sizeBytes - 1)}`,
    };
  }

  // ---- manifests ----

  async #manifest(
    exchange: Exchange,
    { name, reference }: Extract<Route, { kind: "manifest" }>,
    located: Hosted,
    by: Requester,
  ): Promise<void> {
    const { request, query } = exchange;
    const tags = [...new Set(query.getAll("tag"))].map(tagOf);
    if (tags.length > MAX_TAGS) {
      throw new RegistryError("MANIFEST_INVALID", `${tags.length} tags are more than ${MAX_TAGS} at a time`, {
        status: 414,
      });
    }
    const bytes = await readBody(
      request,
      MAX_MANIFEST_BYTES,
      this.#deps.progress,
      () =>
        new RegistryError("MANIFEST_INVALID", `the manifest is larger than ${MAX_MANIFEST_BYTES} bytes`, {
          status: 413,
        }),
      (taken) => exchange.note({ bytes: taken }),
    );
    const { hosted, gate } = this.#deps;
    // The body may have taken long: meanwhile, who sends it may have lost its rights.
    const caller = await exchange.authenticate();
    gate.check(caller, located, "create");
    const { digest, subject } = await hosted.manifests.push(
      located,
      reference,
      {
        bytes,
        contentType: request.headers["content-type"],
        tags,
        mayMove: gate.rights(caller, located).has("push"),
        condition: conditionOf(request),
        origin: originOf(request),
      },
      by,
    );
    await this.#warn(exchange, located);
    this.#created(exchange, `/v2/${name}/manifests/${digest}`, digest, {
      ...(subject === undefined ? {} : { "oci-subject": subject }),
      ...(tags.length === 0 ? {} : { "oci-tag": tags }),
    });
  }

  // ---- answers ----

  /** With the answer of a push, the client is told that its namespace is nearly full. */
  async #warn({ response }: Exchange, { repository }: Hosted): Promise<void> {
    // The push is done, whatever becomes of this.
    const text = await this.#deps.quotas.warning(repository).catch(() => undefined);
    if (text !== undefined) response.setHeader("warning", warningValue(text));
  }

  #created(exchange: Exchange, path: string, digest: string, headers: Record<string, string | string[]> = {}): void {
    exchange.note({ digest });
    this.#answer(exchange, 201, {
      location: this.#location(path),
      "docker-content-digest": digest,
      "content-length": 0,
      ...headers,
    });
  }

  #location(path: string): string {
    return `${this.#deps.publicUrl ?? ""}${path}`;
  }

  #answer({ response }: Exchange, status: number, headers: Record<string, string | number | string[]>): void {
    response.writeHead(status, { ...API_VERSION, ...headers });
    response.end();
  }
}

/** @throws RegistryError DIGEST_INVALID for an algorithm that can't be proven here */
function algorithmOf(name: string | null): DigestAlgorithm {
  if (name === null || name === "sha256") return "sha256";
  if (name === "sha512") return "sha512";
  throw new RegistryError("DIGEST_INVALID", `digest-algorithm=${name.slice(0, 40)}: expected sha256 or sha512`);
}

function hasBody({ headers }: IncomingMessage): boolean {
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
}

/** Undefined where the body comes in chunks of unknown number. */
function lengthOf({ headers }: IncomingMessage): number | undefined {
  const length = headers["content-length"];
  return length === undefined || headers["transfer-encoding"] !== undefined ? undefined : Number(length);
}

/** Where the client says that its bytes belong. @throws RegistryError BLOB_UPLOAD_INVALID, SIZE_INVALID */
function placementOf(request: IncomingMessage): Placement | undefined {
  const header = request.headers["content-range"];
  const length = lengthOf(request);
  if (header === undefined) return length === undefined ? undefined : { lengthBytes: length };
  const [, first, last] = CONTENT_RANGE.exec(header.trim()) ?? [];
  if (first === undefined || last === undefined || Number(last) < Number(first)) {
    throw new RegistryError("BLOB_UPLOAD_INVALID", `Content-Range "${header.slice(0, 100)}" is not <first>-<last>`);
  }
  const lengthBytes = Number(last) - Number(first) + 1;
  if (length !== undefined && length !== lengthBytes) {
    throw new RegistryError(
      "SIZE_INVALID",
      `Content-Range names ${lengthBytes} bytes, Content-Length is ${length}: the two have to agree`,
    );
  }
  return { firstByte: Number(first), lengthBytes };
}

/** @throws RegistryError MANIFEST_INVALID */
function tagOf(text: string): Tag {
  if (isTag(text)) return text;
  throw new RegistryError("MANIFEST_INVALID", `"${text.slice(0, 140)}" is not a tag`);
}

/** What a copy is a copy of. @throws RegistryError MANIFEST_INVALID */
function originOf({ headers }: IncomingMessage): Origin | undefined {
  const header = headers[ORIGIN_HEADER];
  if (header === undefined) return undefined;
  const origin = typeof header === "string" ? parseOrigin(header) : undefined;
  if (origin) return origin;
  throw new RegistryError(
    "MANIFEST_INVALID",
    `Entrepot-Origin "${String(header).slice(0, 100)}" is not at=MILLISECONDS; by=ID: send it as the source answered it, or leave it out`,
  );
}

/** Source: RFC 9110 §13.1 */
function conditionOf({ headers }: IncomingMessage): TagCondition {
  const { "if-match": match, "if-none-match": noneMatch } = headers;
  return {
    // A weak tag never matches strongly, and a digest is never weak.
    ...(match === undefined ? {} : { ifMatch: etagsOf(match) }),
    ...(noneMatch === undefined ? {} : { ifNoneMatch: etagsOf(noneMatch.replaceAll("W/", "")) }),
  };
}

function etagsOf(header: string): string[] | "any" {
  if (header.trim() === "*") return "any";
  return header.split(",").map((etag) => etag.trim().replaceAll('"', ""));
}
