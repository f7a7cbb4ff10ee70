import { z } from "zod";
import type { Digest } from "../../oci/digest.ts";
import { parseManifest, type Descriptor } from "../../oci/manifest.ts";
import type { RepositoryName } from "../../oci/reference.ts";
import type { BlobStore } from "../../store/blobs.ts";
import type { Browse, ManifestEntry } from "../../store/browse.ts";
import type { Catalog } from "../../store/catalog.ts";
import type { HostedCatalog, Referrer } from "../../store/hosted-catalog.ts";
import { manifest, referrer } from "./browse-schemas.ts";
import { imageOf } from "./image-config.ts";
import { isoTime, operation, pageBody, pageOf, paging, readCursor, type Operation } from "./operation.ts";
import { Problem } from "./problem.ts";
import { digest, repositoryName } from "./schemas.ts";

export interface ManifestsDeps {
  browse: Browse;
  catalog: Catalog;
  hostedCatalog: HostedCatalog;
  blobs: BlobStore;
}

/** So many tags of a manifest are named. */
const MOST_TAGS = 100;
/** A config beyond it is not read. */
const MOST_CONFIG_BYTES = 1024 * 1024;

type Shown = z.input<typeof manifest>;

/** Manifests, and what they point to, as far as it is stored here: no upstream is asked. */
export function manifestOperations(deps: ManifestsDeps): Operation[] {
  const { browse, hostedCatalog } = deps;
  const params = { repository: repositoryName, digest };
  const find = async (repository: RepositoryName, wanted: Digest): Promise<ManifestEntry> => {
    const found = await browse.manifest(repository, wanted);
    if (!found) throw new Problem("not-found", `there is no manifest ${wanted} in ${repository}`);
    return found;
  };
  return [
    operation({
      id: "getManifest",
      method: "GET",
      path: "/repositories/{repository}/manifests/{digest}",
      tag: "repositories",
      summary: "Tells what a manifest is made of, and what of it is stored here",
      allows: { repository: "pull" },
      params,
      answers: { 200: { description: "The manifest", schema: manifest } },
      problems: ["not-found"],
      handle: async ({ params: { repository, digest: wanted } }) => ({
        status: 200,
        body: await show(deps, repository, wanted, await find(repository, wanted)),
      }),
    }),
    operation({
      id: "listReferrers",
      method: "GET",
      path: "/repositories/{repository}/manifests/{digest}/referrers",
      tag: "repositories",
      summary: "Lists what refers to a manifest and is stored here: signatures, SBOMs",
      allows: { repository: "pull" },
      params,
      query: { ...paging, artifactType: z.string().max(255).optional() },
      answers: { 200: { description: "A page of referrers, in order of their digests", schema: pageOf(referrer) } },
      problems: ["not-found"],
      handle: async ({ params: { repository, digest: wanted }, query: { limit, cursor, artifactType } }) => {
        const last = readCursor(z.string(), cursor) ?? "";
        await find(repository, wanted);
        const found = await hostedCatalog.listReferrers(repository, wanted, artifactType, last, limit);
        return { status: 200, body: pageBody(found.map(referrerAnswer), limit, () => found.at(-1)?.digest) };
      },
    }),
  ];
}

async function show(
  { browse, catalog, blobs }: ManifestsDeps,
  repository: RepositoryName,
  wanted: Digest,
  entry: ManifestEntry,
): Promise<Shown> {
  const { mediaType, sizeBytes, upstream, linkedAtMs } = entry;
  const bytes = await catalog.readManifest(wanted);
  if (!bytes) throw new Problem("not-found", `manifest ${wanted} has just been removed`);
  const parsed = parseManifest(bytes, mediaType);
  const { kind, config, layers, manifests, subject, artifactType, annotations } = parsed;
  const all = [...(config ? [config] : []), ...layers, ...manifests];
  const present = await browse.present(
    repository,
    all.map(({ digest: each }) => each),
  );
  const content = (each: Descriptor): Shown["layers"][number] => ({
    digest: each.digest,
    mediaType: each.mediaType,
    sizeBytes: each.sizeBytes,
    present: present.has(each.digest),
    ...(each.annotations ? { annotations: each.annotations } : {}),
  });
  const image =
    config && present.has(config.digest) && config.sizeBytes <= MOST_CONFIG_BYTES
      ? await imageOf(blobs, config)
      : undefined;
  return {
    digest: wanted,
    mediaType,
    kind,
    sizeBytes,
    contentBytes: await browse.contentBytes(wanted, mediaType),
    ...(upstream === undefined ? {} : { upstream }),
    linkedAt: isoTime(linkedAtMs),
    tags: await browse.tagsOf(repository, wanted, MOST_TAGS),
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(subject ? { subject: subject.digest } : {}),
    ...(annotations ? { annotations } : {}),
    ...(config ? { config: content(config) } : {}),
    layers: layers.map(content),
    platforms: manifests.map((each) => ({
      ...content(each),
      ...(each.platform ? { platform: each.platform } : {}),
      ...(each.artifactType === undefined ? {} : { artifactType: each.artifactType }),
    })),
    ...(image ? { image } : {}),
  };
}

function referrerAnswer({ artifactType, annotations, ...rest }: Referrer): z.input<typeof referrer> {
  return {
    ...rest,
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  };
}
