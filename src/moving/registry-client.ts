import { Agent, request, type Dispatcher } from "undici";
import { digestOf, algorithmOf, isDigest, type Digest } from "../oci/digest.ts";
import { MANIFEST_ACCEPT, MAX_MANIFEST_BYTES } from "../oci/manifest.ts";
import { isRepositoryName, isTag, type Reference, type Tag } from "../oci/reference.ts";

/** Longer than a registry behind this one may take to answer. */
const WAIT_MS = 180_000;
const MAX_LIST_BYTES = 16 * 1024 * 1024;
const PAGE = 1000;

/** Where a registry listens. */
export interface Origin {
  /** `http://host:port`. */
  origin: string;
  /** How it is connected to, where that is no matter of course. */
  connect?: Agent.Options["connect"];
  /** The `Authorization` header of every request, and what helps where it is not good there. */
  login?: { authorization: string | undefined; remedy: string } | undefined;
}

/** The registry answered, but not with what was asked for. */
export class Refused extends Error {
  override readonly name = "Refused";
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** A manifest as the registry has it, proven. */
export interface FetchedManifest {
  digest: Digest;
  mediaType: string;
  bytes: Buffer;
  /** The full name of its repository, as the registry knows it. */
  repository: string;
}

/**
 * The OCI distribution API of one registry, as far as images are carried in and out through it.
 * Every method throws {@link Refused} with what the registry says, and Error where it does not answer.
 */
export class RegistryClient implements AsyncDisposable {
  readonly #origin: string;
  readonly #agent: Agent;
  readonly #login: Origin["login"];

  constructor({ origin, connect = { timeout: 10_000 }, login }: Origin) {
    this.#login = login;
    this.#origin = origin;
    this.#agent = new Agent({
      connect,
      headersTimeout: WAIT_MS,
      bodyTimeout: WAIT_MS,
    });
  }

  async manifest(repository: string, reference: Reference, signal: AbortSignal): Promise<FetchedManifest> {
    const answer = await this.#ask("GET", `/v2/${repository}/manifests/${reference}`, signal, {
      headers: { accept: MANIFEST_ACCEPT },
    });
    await this.#expect(answer, 200);
    const bytes = await readAll(answer.body, MAX_MANIFEST_BYTES);
    const told = header(answer, "docker-content-digest");
    const wanted = isDigest(reference) ? reference : told !== undefined && isDigest(told) ? told : digestOf(bytes);
    if (digestOf(bytes, algorithmOf(wanted)) !== wanted) {
      throw new Error(`${repository}: what came as manifest ${wanted} is something else`);
    }
    const full = header(answer, "entrepot-repository");
    return {
      digest: wanted,
      mediaType: header(answer, "content-type") ?? "",
      bytes,
      repository: full !== undefined && isRepositoryName(full) ? full : repository,
    };
  }

  /** Digests of what refers to a subject; none where nothing does. */
  async referrers(repository: string, subject: Digest, signal: AbortSignal): Promise<Digest[]> {
    const found: Digest[] = [];
    for await (const page of this.#pages(`/v2/${repository}/referrers/${subject}`, signal)) {
      const { manifests } = page as { manifests?: { digest?: unknown }[] };
      for (const { digest } of manifests ?? []) if (typeof digest === "string" && isDigest(digest)) found.push(digest);
    }
    return found;
  }

  /** Tags that begin with the text, which must itself begin with a letter or digit. */
  async tagsWith(repository: string, prefix: string, signal: AbortSignal): Promise<Tag[]> {
    const found: Tag[] = [];
    // Lists are sorted, and `last` need not exist.
    const path = `/v2/${repository}/tags/list?n=${PAGE}&last=${prefix.slice(0, -1)}`;
    for await (const page of this.#pages(path, signal)) {
      const tags = ((page as { tags?: unknown }).tags ?? []) as unknown[];
      for (const tag of tags) {
        if (typeof tag !== "string" || !isTag(tag)) continue;
        if (tag.startsWith(prefix)) found.push(tag);
        else if (tag > prefix) return found;
      }
    }
    return found;
  }

  /** The bytes of a blob, not proven. */
  async *blob(repository: string, digest: Digest, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
    const answer = await this.#ask("GET", `/v2/${repository}/blobs/${digest}`, signal);
    await this.#expect(answer, 200);
    yield* answer.body as AsyncIterable<Buffer>;
  }

  /** @throws Refused where nothing may be pushed to the repository */
  async checkPush(repository: string, signal: AbortSignal): Promise<void> {
    await this.#cancel(await this.#startUpload(`/v2/${repository}/blobs/uploads/`, signal));
  }

  /**
   * Sends a blob, unless the registry has it.
   * @param body is asked for only where it is needed
   * @returns whether it was sent
   */
  async pushBlob(
    repository: string,
    blob: { digest: Digest; sizeBytes: number },
    body: () => AsyncIterable<Buffer>,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { digest, sizeBytes } = blob;
    const session = await this.#startUpload(`/v2/${repository}/blobs/uploads/?mount=${digest}`, signal);
    if (session === undefined) return false;
    try {
      const target = `${session}${session.includes("?") ? "&" : "?"}digest=${digest}`;
      const answer = await this.#ask("PUT", target, signal, {
        headers: { "content-length": String(sizeBytes), "content-type": "application/octet-stream" },
        // Zero bytes are no stream to undici.
        body:
          sizeBytes === 0 ? Buffer.alloc(0) : (body() as unknown as NonNullable<Dispatcher.DispatchOptions["body"]>),
      });
      await this.#expect(answer, 201);
      await answer.body.dump();
      return true;
    } catch (error) {
      await this.#cancel(session);
      throw error;
    }
  }

  /** Lets another repository of the registry have a blob. @returns false where it can't */
  async mount(repository: string, digest: Digest, from: string, signal: AbortSignal): Promise<boolean> {
    const path = `/v2/${repository}/blobs/uploads/?mount=${digest}&from=${encodeURIComponent(from)}`;
    const session = await this.#startUpload(path, signal);
    await this.#cancel(session);
    return session === undefined;
  }

  async pushManifest(
    repository: string,
    reference: Reference,
    { bytes, mediaType }: { bytes: Buffer; mediaType: string },
    signal: AbortSignal,
  ): Promise<void> {
    const answer = await this.#ask("PUT", `/v2/${repository}/manifests/${reference}`, signal, {
      headers: { "content-type": mediaType },
      body: bytes,
    });
    await this.#expect(answer, 201);
    await answer.body.dump();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#agent.destroy();
  }

  /** @returns where to send it; undefined where a mount has made that needless */
  async #startUpload(path: string, signal: AbortSignal): Promise<string | undefined> {
    const answer = await this.#ask("POST", path, signal, { headers: { "content-length": "0" } });
    await this.#expect(answer, 201, 202);
    await answer.body.dump();
    if (answer.statusCode === 201) return undefined;
    const location = header(answer, "location");
    if (location === undefined) throw new Error(`${this.#origin} does not say where to upload to`);
    // It may name the registry as others reach it: only the path is of use here.
    const { pathname, search } = new URL(location, this.#origin);
    return `${pathname}${search}`;
  }

  /** What the registry does not give up now, it does after a while. */
  async #cancel(session: string | undefined): Promise<void> {
    if (session === undefined) return;
    const answer = await this.#ask("DELETE", session, AbortSignal.timeout(5000)).catch(() => undefined);
    await answer?.body.dump();
  }

  async *#pages(path: string, signal: AbortSignal): AsyncGenerator<object> {
    for (let next: string | undefined = path; next !== undefined;) {
      const answer = await this.#ask("GET", next, signal);
      if (answer.statusCode === 404) {
        await answer.body.dump();
        return;
      }
      await this.#expect(answer, 200);
      const page = JSON.parse((await readAll(answer.body, MAX_LIST_BYTES)).toString()) as unknown;
      if (typeof page === "object" && page !== null) yield page;
      const link = /<([^>]+)>;\s*rel="?next"?/.exec(header(answer, "link") ?? "")?.[1];
      const url: URL | undefined = link === undefined ? undefined : new URL(link, new URL(next, this.#origin));
      next = url && `${url.pathname}${url.search}`;
    }
  }

  #ask(
    method: Dispatcher.HttpMethod,
    path: string,
    signal: AbortSignal,
    options: { headers?: Record<string, string>; body?: NonNullable<Dispatcher.DispatchOptions["body"]> } = {},
  ): Promise<Dispatcher.ResponseData> {
    const authorization = this.#login?.authorization;
    const headers = { ...options.headers, ...(authorization === undefined ? {} : { authorization }) };
    return request(`${this.#origin}${path}`, { ...options, headers, method, signal, dispatcher: this.#agent });
  }

  async #expect(answer: Dispatcher.ResponseData, ...statuses: number[]): Promise<void> {
    if (statuses.includes(answer.statusCode)) return;
    const text = (await readAll(answer.body, MAX_LIST_BYTES)).toString();
    const message = messageOf(text) ?? `the registry answered ${answer.statusCode}`;
    const remedy = answer.statusCode === 401 ? this.#login?.remedy : undefined;
    throw new Refused(answer.statusCode, remedy === undefined ? message : `${message}; ${remedy}`);
  }
}

function header(answer: Dispatcher.ResponseData, name: string): string | undefined {
  const value = answer.headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
}

/** What an error of the distribution API says. */
function messageOf(text: string): string | undefined {
  try {
    const { errors } = JSON.parse(text) as { errors?: { message?: unknown }[] };
    const messages = (errors ?? []).map(({ message }) => message).filter((one) => typeof one === "string");
    return messages.length === 0 ? undefined : messages.slice(0, 5).join("; ");
  } catch {
    return undefined;
  }
}

async function readAll(body: AsyncIterable<Buffer>, mostBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of body) {
    sizeBytes += chunk.length;
    if (sizeBytes > mostBytes) throw new Error(`the registry's answer is longer than ${mostBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
