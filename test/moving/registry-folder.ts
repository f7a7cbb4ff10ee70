import { mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { hexOf, type Digest } from "../../src/oci/digest.ts";
import type { Content, Image, Index, Published } from "../kit/images.ts";

/** A data directory as registry:2 writes it, made by hand. */
export class RegistryFolder {
  readonly path: string;
  readonly root: string;

  constructor(path: string) {
    this.path = path;
    this.root = join(path, "docker/registry/v2");
  }

  async image(repository: string, image: Image, ...tags: string[]): Promise<void> {
    for (const blob of image.blobs.values()) await this.blob(repository, blob);
    await this.manifest(repository, image, ...tags);
  }

  async index(repository: string, index: Index, ...tags: string[]): Promise<void> {
    for (const image of index.images) await this.image(repository, image);
    await this.manifest(repository, index, ...tags);
  }

  async blob(repository: string, { digest, bytes }: Pick<Content, "digest" | "bytes">): Promise<void> {
    await this.write(this.data(digest), bytes);
    await this.write(this.layer(repository, digest), digest);
  }

  async manifest(repository: string, { digest, manifest }: Published, ...tags: string[]): Promise<void> {
    await this.write(this.data(digest), manifest);
    await this.write(this.revision(repository, digest), digest);
    for (const tag of tags) await this.tag(repository, tag, digest);
  }

  async tag(repository: string, tag: string, digest: Digest): Promise<void> {
    await this.write(this.current(repository, tag), digest);
    await this.write(
      join(this.root, "repositories", repository, `_manifests/tags/${tag}/index/sha256/${hexOf(digest)}/link`),
      digest,
    );
  }

  data(digest: Digest): string {
    return join(this.root, "blobs/sha256", hexOf(digest).slice(0, 2), hexOf(digest), "data");
  }

  layer(repository: string, digest: Digest): string {
    return join(this.root, "repositories", repository, "_layers/sha256", hexOf(digest), "link");
  }

  revision(repository: string, digest: Digest): string {
    return join(this.root, "repositories", repository, "_manifests/revisions/sha256", hexOf(digest), "link");
  }

  current(repository: string, tag: string): string {
    return join(this.root, "repositories", repository, "_manifests/tags", tag, "current/link");
  }

  async write(path: string, bytes: string | Buffer): Promise<void> {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, bytes);
  }
}
