import { Agent, request } from "undici";
import type { Bytes } from "../../base/clock.ts";
import { digestOf, proves, startHash, type Digest } from "../../oci/digest.ts";
import { parseManifest } from "../../oci/manifest.ts";

export interface Pulled {
  /** Of the manifest that the tag named. */
  digest: Digest;
  /** What the mirror had to say about it, such as that it may be out of date. */
  warning: string | undefined;
}

/** Pulls images as docker does: manifest by tag, then config and layers at the same time. Believes nothing that its digest does not prove. */
export class DemoClient implements AsyncDisposable {
  readonly #origin: string;
  readonly #agent = new Agent({ connections: 4 });
  readonly #received: (bytes: Bytes) => void;

  /** @param received told of every piece of a body */
  constructor(origin: string, received: (bytes: Bytes) => void) {
    this.#origin = origin;
    this.#received = received;
  }

  /** @throws Error where not every byte comes, and is right */
  async pull(repository: string, tag: string): Promise<Pulled> {
    const { headers, body } = await this.#ask("GET", `${repository}/manifests/${tag}`);
    const bytes = Buffer.from(await body.bytes());
    this.#received(bytes.length);
    const { config, layers } = parseManifest(bytes, String(headers["content-type"]));
    const blobs = [...(config ? [config] : []), ...layers];
    await Promise.all(blobs.map(({ digest }) => this.#pullBlob(repository, digest)));
    return { digest: digestOf(bytes), warning: headers["warning"]?.toString() };
  }

  /** Where the tag points now. */
  async head(repository: string, tag: string): Promise<string> {
    const { headers, body } = await this.#ask("HEAD", `${repository}/manifests/${tag}`);
    await body.dump();
    return String(headers["docker-content-digest"]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#agent.destroy();
  }

  async #pullBlob(repository: string, digest: Digest): Promise<void> {
    const { body } = await this.#ask("GET", `${repository}/blobs/${digest}`);
    const hash = startHash(digest);
    for await (const piece of body as AsyncIterable<Buffer>) {
      hash.update(piece);
      this.#received(piece.length);
    }
    if (!proves(hash, digest)) throw new WrongBytes(`what came complete as ${digest} is something else`);
  }

  async #ask(method: "GET" | "HEAD", path: string) {
    const answer = await request(`${this.#origin}/v2/${path}`, { method, dispatcher: this.#agent });
    if (answer.statusCode === 200) return answer;
    await answer.body.dump();
    throw new Error(`${method} ${path} was answered ${answer.statusCode}`);
  }
}

/** The worst that a mirror can do. */
export class WrongBytes extends Error {
  override readonly name = "WrongBytes";
}
