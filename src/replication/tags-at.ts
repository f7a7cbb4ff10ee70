/** What tags lead to at a registry, and how one comes to lead to what the registry has. */
import { algorithmOf, digestOf, type Digest } from "../oci/digest.ts";
import { bareMediaType, MEDIA_TYPES } from "../oci/manifest.ts";
import type { Told } from "../oci/origin.ts";
import type { Reference, Tag } from "../oci/reference.ts";
import type { Remote } from "../remote/remote.ts";
import type { Target } from "../remote/target.ts";

/** What a reference leads to; undefined: it is not there. @throws RemoteError */
export async function toldAt(
  remote: Pick<Remote, "headManifest" | "getManifest">,
  repository: string,
  reference: Reference,
  signal: AbortSignal,
): Promise<Told | undefined> {
  const head = await remote.headManifest(repository, reference, { signal });
  if (typeof head !== "object") return undefined;
  if (head.digest !== undefined) return { digest: head.digest, origin: head.origin };
  // Some registries do not tell the digest.
  const got = await remote.getManifest(repository, reference, { signal });
  return got && { digest: digestOf(got.bytes), origin: got.origin };
}

/** A manifest by its digest, as it can be put under a tag. @returns undefined where the target has it no more, or something else */
export async function manifestAt(
  target: Pick<Target, "getManifest">,
  repository: string,
  digest: Digest,
  signal: AbortSignal,
): Promise<{ bytes: Buffer; mediaType: string } | undefined> {
  const found = await target.getManifest(repository, digest, { signal });
  if (!found || digestOf(found.bytes, algorithmOf(digest)) !== digest) return undefined;
  return { bytes: found.bytes, mediaType: bareMediaType(found.contentType) ?? MEDIA_TYPES.ociImage };
}

/** Lets a tag lead to a manifest that the target has. @throws RemoteError; Error where it has it no more */
export async function putUnder(
  target: Pick<Target, "getManifest" | "putManifest">,
  repository: string,
  digest: Digest,
  tag: Tag,
  signal: AbortSignal,
): Promise<void> {
  const manifest = await manifestAt(target, repository, digest, signal);
  if (!manifest) throw new Error(`${repository}@${digest}, which ${tag} should lead to, is not there any more`);
  const stored = await target.putManifest(repository, tag, manifest, { signal });
  if (stored.missing) throw stored.cause;
}
