import assert from "node:assert/strict";
import { Agent, request } from "undici";
import type { Digest } from "../../src/oci/digest.ts";
import type { Content, Published } from "../kit/images.ts";
import type { Answer } from "../kit/registry.ts";

/** How a blob is sent. */
export const WAYS = ["single", "monolithic", "chunked", "streamed", "closing"] as const;
export type Way = (typeof WAYS)[number];

const SMALLEST_CHUNK_BYTES = 1000;

/** An upload that the registry has told an address of. */
export interface Session {
  readonly repository: string;
  readonly content: Content;
  location: string;
  /** Bytes that were acknowledged. */
  acknowledgedBytes: number;
  /** Bytes that were sent at most. */
  sentBytes: number;
  /** Its last request was sent: from then on it may be gone. */
  ending: boolean;
}

/** An answer that no registry may give. */
export class WrongAnswer extends Error {
  override readonly name = "WrongAnswer";
  readonly answer: Answer;

  constructor(what: string, answer: Answer) {
    super(`${what}: ${answer.status} ${answer.bytes.subarray(0, 500).toString()}`);
    this.answer = answer;
  }
}

/** A client that pushes. Rejects where the connection breaks: then nobody knows what became of the request. */
export class PushClient implements AsyncDisposable {
  readonly #origin: string;
  readonly #agent = new Agent({ pipelining: 1, headersTimeout: 30_000, bodyTimeout: 30_000 });

  constructor(origin: string) {
    this.#origin = origin;
  }

  /** @param body a Buffer goes with Content-Length, anything else in chunks */
  async send(
    method: string,
    path: string,
    headers: Record<string, string> = {},
    body?: Buffer | AsyncIterable<Buffer>,
  ): Promise<Answer> {
    const answer = await request(new URL(path, this.#origin), {
      method: method as "GET",
      headers,
      dispatcher: this.#agent,
      ...(body === undefined ? {} : { body: body as Buffer }),
    });
    return { status: answer.statusCode, headers: answer.headers, bytes: Buffer.from(await answer.body.arrayBuffer()) };
  }

  get(path: string, headers?: Record<string, string>): Promise<Answer> {
    return this.send("GET", path, headers);
  }

  /** Asks a job of the JSON API to run to its end. @returns its lines, parsed; undefined while another one runs */
  async run(job: "gc" | "scrub"): Promise<Record<string, unknown>[] | undefined> {
    const answer = await this.send("POST", `/api/v1/${job}`, { "content-type": "application/json" }, Buffer.from("{}"));
    if (answer.status === 409) return undefined;
    if (answer.status !== 200) throw new WrongAnswer(`POST /api/v1/${job}`, answer);
    const lines = answer.bytes.toString().trimEnd().split("\n");
    const events = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
    if (events.at(-1)?.["type"] !== "done") throw new WrongAnswer(`${job} did not come to its end`, answer);
    return events;
  }

  async open(repository: string, content: Content): Promise<Session> {
    const answer = await this.send("POST", `/v2/${repository}/blobs/uploads/`);
    if (answer.status !== 202) throw new WrongAnswer(`POST an upload to ${repository}`, answer);
    return sessionOf(repository, content, answer);
  }

  /** Sends the session's next bytes, up to `endByte`. */
  async append(session: Session, endByte: number, how: "ranged" | "streamed" = "ranged"): Promise<void> {
    const { content, acknowledgedBytes } = session;
    session.sentBytes = Math.max(session.sentBytes, endByte);
    const piece = Buffer.concat([...content.chunks(acknowledgedBytes, endByte)]);
    const answer = await this.send(
      "PATCH",
      session.location,
      how === "streamed"
        ? {}
        : { "content-range": `${acknowledgedBytes}-${endByte - 1}`, "content-type": "application/octet-stream" },
      how === "streamed" ? inPieces(piece) : piece,
    );
    // The registry may have given it up.
    if (answer.status >= 500) session.ending = true;
    if (answer.status !== 202) throw new WrongAnswer(`PATCH ${session.location}`, answer);
    assert.equal(answer.headers["range"], `0-${endByte - 1}`);
    session.location = String(answer.headers["location"]);
    session.acknowledgedBytes = endByte;
  }

  /** Sends the rest, and closes the session. */
  async finish(session: Session): Promise<Answer> {
    const { content, acknowledgedBytes } = session;
    session.sentBytes = content.sizeBytes;
    session.ending = true;
    const url = new URL(session.location, this.#origin);
    url.searchParams.set("digest", content.digest);
    const rest = Buffer.concat([...content.chunks(acknowledgedBytes, content.sizeBytes)]);
    return this.send("PUT", url.pathname + url.search, { "content-type": "application/octet-stream" }, rest);
  }

  async cancel(session: Session): Promise<Answer> {
    session.ending = true;
    return this.send("DELETE", session.location);
  }

  /** Asks how many bytes of the session have arrived. @returns undefined for a session that is not there */
  async offsetOf(session: Session): Promise<number | undefined> {
    const answer = await this.get(session.location);
    if (answer.status === 404) return undefined;
    if (answer.status !== 204) throw new WrongAnswer(`GET ${session.location}`, answer);
    session.location = String(answer.headers["location"]);
    const [, lastByte] = /^0-(\d+)$/.exec(String(answer.headers["range"])) ?? [];
    assert.ok(lastByte !== undefined, `Range: ${String(answer.headers["range"])}`);
    // Of nothing, and of one byte: which is never all that was sent.
    return lastByte === "0" ? 0 : Number(lastByte) + 1;
  }

  /** Pushes a whole blob. `sessions` holds its session while it is open. @throws WrongAnswer unless it ends with 201 */
  async pushBlob(repository: string, content: Content, way: Way, sessions = new Set<Session>()): Promise<void> {
    const path = `/v2/${repository}/blobs/uploads/`;
    let answer: Answer;
    if (way === "single") {
      answer = await this.send(
        "POST",
        `${path}?digest=${content.digest}`,
        { "content-type": "application/octet-stream" },
        content.bytes,
      );
      // A registry may leave it at an open session.
      if (answer.status === 202) answer = await this.#complete(sessionOf(repository, content, answer), sessions);
    } else {
      const session = await this.open(repository, content);
      sessions.add(session);
      if (way === "chunked") {
        const step = Math.max(SMALLEST_CHUNK_BYTES, Math.ceil(content.sizeBytes / 3));
        for (let end = step; end < content.sizeBytes; end += step) await this.append(session, end);
      } else if (way === "streamed") await this.append(session, content.sizeBytes, "streamed");
      else if (way === "closing" && content.sizeBytes > 2 * SMALLEST_CHUNK_BYTES)
        await this.append(session, content.sizeBytes >> 1, "streamed");
      answer = await this.#complete(session, sessions);
    }
    if (answer.status !== 201) throw new WrongAnswer(`push ${content.digest} to ${repository} (${way})`, answer);
  }

  /** Takes over a blob from another repository, or pushes it where the registry would not. @returns whether it was mounted */
  async mountBlob(repository: string, content: Content, from: string, sessions = new Set<Session>()): Promise<boolean> {
    const path = `/v2/${repository}/blobs/uploads/?mount=${content.digest}&from=${from}`;
    const mounted = await this.send("POST", path);
    if (mounted.status === 201) return true;
    if (mounted.status !== 202) throw new WrongAnswer(`mount ${content.digest} into ${repository}`, mounted);
    const answer = await this.#complete(sessionOf(repository, content, mounted), sessions);
    if (answer.status !== 201) throw new WrongAnswer(`push ${content.digest} to ${repository}`, answer);
    return false;
  }

  /** PUTs a manifest by tag, or by digest with any number of tags. */
  putManifest(repository: string, item: Published, reference: string, tags: readonly string[] = []): Promise<Answer> {
    const query = tags.length > 0 ? `?${tags.map((tag) => `tag=${tag}`).join("&")}` : "";
    const path = `/v2/${repository}/manifests/${reference}${query}`;
    return this.send("PUT", path, { "content-type": item.mediaType }, item.manifest);
  }

  /** Pushes an image with its blobs. @throws WrongAnswer */
  async pushImage(repository: string, tag: string, image: Published & { blobs: Map<Digest, Content> }): Promise<void> {
    for (const content of image.blobs.values()) await this.pushBlob(repository, content, "monolithic");
    const answer = await this.putManifest(repository, image, tag);
    if (answer.status !== 201) throw new WrongAnswer(`push ${repository}:${tag}`, answer);
  }

  async #complete(session: Session, sessions: Set<Session>): Promise<Answer> {
    sessions.add(session);
    const answer = await this.finish(session);
    if (answer.status === 201) sessions.delete(session);
    return answer;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#agent.destroy();
  }
}

function sessionOf(repository: string, content: Content, answer: Answer): Session {
  const location = answer.headers["location"];
  assert.ok(typeof location === "string", "an upload without a Location");
  return { repository, content, location, acknowledgedBytes: 0, sentBytes: 0, ending: false };
}

async function* inPieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 16_384) yield bytes.subarray(at, at + 16_384);
}
