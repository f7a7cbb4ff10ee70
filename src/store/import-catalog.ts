import type { Database, Writer } from "../db/database.ts";
import type { Digest } from "../oci/digest.ts";
import type { RepositoryName, Tag } from "../oci/reference.ts";
import { ensureRepository, insertManifest, type Catalog, type NewManifest, type Removed } from "./catalog.ts";
import { claimNamespace, type Place, type Required, type Within } from "./hosted-catalog.ts";

export interface ImportedBlob {
  place: Place;
  digest: Digest;
  sizeBytes: number;
}

export interface ImportedManifest {
  place: Place;
  manifest: NewManifest;
  required: Required;
}

export interface ImportedTag {
  place: Place;
  tag: Tag;
  digest: Digest;
}

/** A tag that points elsewhere than before. */
export interface MovedTag extends ImportedTag {
  mediaType: string;
  sizeBytes: number;
}

interface Content {
  repository: RepositoryName;
  digest: Digest;
}

/** What is here of a content. */
export interface Here {
  stored: boolean;
  /** Whether the repository reaches it, too. */
  linked: boolean;
}

/** What became of a tag: it points there `now`, or did `before`; or it was left as it is. */
export type TagOutcome = "now" | "before" | { kept: Digest };

/** Of :rows, [repository, digest] each, in their order. */
const FIND_BLOBS = `
  SELECT EXISTS (SELECT 1 FROM blobs b WHERE b.digest = w.value ->> 1) AS stored,
    EXISTS (SELECT 1 FROM repositories r JOIN repository_content c ON c.repository_id = r.id
            WHERE r.name = w.value ->> 0 AND c.digest = w.value ->> 1) AS linked
  FROM json_each(:rows) w ORDER BY w.key`;
const FIND_MANIFESTS = `
  SELECT EXISTS (SELECT 1 FROM manifests m WHERE m.digest = w.value ->> 1) AS stored,
    EXISTS (SELECT 1 FROM repositories r JOIN repository_content c ON c.repository_id = r.id
            WHERE r.name = w.value ->> 0 AND c.digest = w.value ->> 1) AS linked
  FROM json_each(:rows) w ORDER BY w.key`;
const CACHED_BLOBS = `
  SELECT size AS "sizeBytes", upstream FROM blobs
  WHERE upstream IS NOT NULL AND digest IN (SELECT value FROM json_each(:digests))`;
const CACHED_MANIFESTS = `
  SELECT size AS "sizeBytes", upstream FROM manifests
  WHERE upstream IS NOT NULL AND digest IN (SELECT value FROM json_each(:digests))`;
const ADD_BLOBS = `
  INSERT INTO blobs (digest, size, upstream, created_at, used_at)
  SELECT value ->> 0, value ->> 1, NULL, :now, :now FROM json_each(:rows) WHERE TRUE
  ON CONFLICT (digest) DO UPDATE SET used_at = excluded.used_at, upstream = NULL`;
const ADD_LINKS = `
  INSERT INTO repository_content (repository_id, digest, linked_at)
  SELECT value ->> 0, value ->> 1, :now FROM json_each(:rows) WHERE TRUE
  ON CONFLICT DO UPDATE SET linked_at = excluded.linked_at`;
/** Of :blobs and :manifests, [repository's id, digest] each, those that are held. */
const HELD = `
  SELECT w.value ->> 0 AS "repositoryId", w.value ->> 1 AS digest FROM json_each(:blobs) w
  JOIN repository_content c ON c.repository_id = w.value ->> 0 AND c.digest = w.value ->> 1
  WHERE EXISTS (SELECT 1 FROM blobs b WHERE b.digest = c.digest)
  UNION ALL
  SELECT w.value ->> 0, w.value ->> 1 FROM json_each(:manifests) w
  JOIN repository_content c ON c.repository_id = w.value ->> 0 AND c.digest = w.value ->> 1
  WHERE EXISTS (SELECT 1 FROM manifests m WHERE m.digest = c.digest)`;
const ADD_CHILDREN = `
  INSERT INTO manifest_children (parent, child, size)
  SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(:rows) WHERE TRUE ON CONFLICT DO NOTHING`;
/** Where a tag points, and the manifest that it is to point to, if its repository holds that. */
const FIND_TAG = `
  SELECT (SELECT digest FROM tags WHERE repository_id = :repositoryId AND name = :tag) AS current,
    m.media_type AS "mediaType", m.size AS "sizeBytes"
  FROM (SELECT 1) LEFT JOIN repository_content c ON c.repository_id = :repositoryId AND c.digest = :digest
  LEFT JOIN manifests m ON m.digest = c.digest`;
const SET_TAG = `
  INSERT INTO tags (repository_id, name, digest, etag, updated_at, checked_at)
  VALUES (:repositoryId, :tag, :digest, NULL, :now, :now)
  ON CONFLICT (repository_id, name) DO UPDATE SET digest = excluded.digest, etag = NULL,
    updated_at = excluded.updated_at, checked_at = excluded.checked_at,
    origin_at = MAX(excluded.updated_at, COALESCE(origin_at, updated_at) + 1), origin_by = NULL`;

/**
 * What an import adds to hosted repositories: as pushes do, but hundreds in a transaction, through the thread in the background. Every write
 * is durable when its promise resolves.
 */
export class ImportCatalog {
  readonly #db: Database;
  readonly #catalog: Catalog;

  /** @param catalog remembers rows, and is told of every change */
  constructor(db: Database, catalog: Catalog) {
    this.#db = db;
    this.#catalog = catalog;
  }

  /** @returns what is here of each, in their order */
  async find(kind: "blob" | "manifest", contents: readonly Content[]): Promise<Here[]> {
    const rows = JSON.stringify(contents.map(({ repository, digest }) => [repository, digest]));
    const sql = kind === "blob" ? FIND_BLOBS : FIND_MANIFESTS;
    const found = await this.#db.background.all<{ stored: number; linked: number }>(sql, { rows });
    return found.map(({ stored, linked }) => ({ stored: stored === 1, linked: stored === 1 && linked === 1 }));
  }

  findTag(repository: RepositoryName, tag: Tag): Promise<{ digest: Digest } | undefined> {
    return this.#db.background.get(
      "SELECT t.digest FROM tags t JOIN repositories r ON r.id = t.repository_id WHERE r.name = :repository AND t.name = :tag",
      { repository, tag },
    );
  }

  /**
   * Records blobs whose files are in place, and lets their repositories reach them.
   * @returns what of it was cached until now
   * @throws NamespaceTaken
   */
  async addBlobs(blobs: readonly ImportedBlob[], nowMs: number): Promise<Removed[]> {
    const cached = await this.#db.background.transaction("durable", async (tx) => {
      await claim(tx, blobs, nowMs);
      const ids = await idsOf(tx, blobs, nowMs);
      const sizes = new Map(blobs.map(({ digest, sizeBytes }) => [digest, sizeBytes]));
      const links = blobs.map(({ place, digest }) => [ids.get(place.repository), digest]);
      const [known] = await Promise.all([
        tx.all<Removed>(CACHED_BLOBS, { digests: JSON.stringify([...sizes.keys()]) }),
        tx.run(ADD_BLOBS, { rows: JSON.stringify([...sizes]), now: nowMs }),
        // After the blobs: the namespace's usage counts what it finds of them.
        tx.run(ADD_LINKS, { rows: JSON.stringify(links), now: nowMs }),
      ]);
      return known;
    });
    for (const { place, digest } of blobs) this.#catalog.forget(place.repository, digest);
    return cached;
  }

  /**
   * Stores manifests whose bytes were proven; one that another of them points to stands before it.
   * @returns what of it was cached until now, and what each lacked: one that lacks anything was not stored
   * @throws NamespaceTaken
   */
  async addManifests(
    manifests: readonly ImportedManifest[],
    nowMs: number,
  ): Promise<{ cached: Removed[]; missing: Digest[][] }> {
    const added = await this.#db.background.transaction("durable", async (tx) => {
      await claim(tx, manifests, nowMs);
      const ids = await idsOf(tx, manifests, nowMs);
      const needed = (kind: keyof Required): string =>
        JSON.stringify(
          manifests.flatMap(({ place, required }) =>
            required[kind].map((digest) => [ids.get(place.repository), digest]),
          ),
        );
      const rows = await tx.all<{ repositoryId: number; digest: Digest }>(HELD, {
        blobs: needed("blobs"),
        manifests: needed("manifests"),
      });
      const held = new Set(rows.map(({ repositoryId, digest }) => `${repositoryId}@${digest}`));
      const missing = manifests.map(({ place, manifest, required }) => {
        const id = ids.get(place.repository);
        const lacking = [...required.blobs, ...required.manifests].filter((digest) => !held.has(`${id}@${digest}`));
        if (lacking.length === 0) held.add(`${id}@${manifest.digest}`);
        return lacking;
      });
      const whole = manifests.filter((_, index) => missing[index]?.length === 0);
      const digests = JSON.stringify(whole.map(({ manifest }) => manifest.digest));
      const links = whole.map(({ place, manifest }) => [ids.get(place.repository), manifest.digest]);
      const children = whole.flatMap(({ manifest }) =>
        manifest.children.map(({ digest, sizeBytes }) => [manifest.digest, digest, sizeBytes]),
      );
      const [cached] = await Promise.all([
        tx.all<Removed>(CACHED_MANIFESTS, { digests }),
        ...whole.map(({ manifest }) => insertManifest(tx, { ...manifest, children: [] }, undefined, nowMs)),
        tx.run(ADD_CHILDREN, { rows: JSON.stringify(children) }),
        // After the manifests: the namespace's usage counts what it finds of them.
        tx.run(ADD_LINKS, { rows: JSON.stringify(links), now: nowMs }),
      ]);
      return { cached, missing };
    });
    for (const { place, manifest } of manifests) this.#catalog.forget(place.repository, manifest.digest);
    return added;
  }

  /**
   * Points tags to manifests that their repositories hold.
   * @param mayMove whether a tag that points elsewhere may be moved
   * @param within is given those that moved
   * @returns what became of each, in their order; undefined: its repository does not hold the manifest
   */
  async setTags(
    tags: readonly ImportedTag[],
    mayMove: (tag: ImportedTag) => boolean,
    nowMs: number,
    within: Within<readonly MovedTag[]>,
  ): Promise<(TagOutcome | undefined)[]> {
    const outcomes = await this.#db.background.transaction("durable", async (tx) => {
      const ids = await idsOf(tx, tags, nowMs);
      const found: (TagOutcome | undefined)[] = [];
      const moved: MovedTag[] = [];
      /** By these themselves: a source may name one tag twice. */
      const set = new Map<string, Digest>();
      const rows = await Promise.all(
        tags.map(({ place, tag, digest }) => {
          const repositoryId = ids.get(place.repository) as number;
          return tx.get<TagRow>(FIND_TAG, { repositoryId, tag, digest });
        }),
      );
      for (const [index, one] of tags.entries()) {
        const { mediaType = null, sizeBytes = 0 } = rows[index] ?? {};
        const name = `${one.place.repository}:${one.tag}`;
        const current = set.get(name) ?? rows[index]?.current ?? null;
        if (mediaType === null) found.push(undefined);
        else if (current === one.digest) found.push("before");
        else if (current !== null && !mayMove(one)) found.push({ kept: current });
        else {
          moved.push({ ...one, mediaType, sizeBytes: sizeBytes ?? 0 });
          set.set(name, one.digest);
          found.push("now");
        }
      }
      await Promise.all(
        moved.map(({ place, tag, digest }) =>
          tx.run(SET_TAG, { repositoryId: ids.get(place.repository) as number, tag, digest, now: nowMs }),
        ),
      );
      if (moved.length > 0) await within(tx, moved);
      return found;
    });
    for (const { place, tag } of tags) this.#catalog.forgetTag(place.repository, tag);
    return outcomes;
  }
}

interface TagRow {
  current: Digest | null;
  mediaType: string | null;
  sizeBytes: number | null;
}

/** Those of their repositories, which come into being where they are not there. */
async function idsOf(
  tx: Writer,
  contents: readonly { place: Place }[],
  nowMs: number,
): Promise<Map<RepositoryName, number>> {
  const ids = new Map<RepositoryName, number>();
  for (const { place } of contents) {
    if (!ids.has(place.repository)) ids.set(place.repository, await ensureRepository(tx, ownerOf(place), nowMs));
  }
  return ids;
}

/** Makes their namespaces hosted ones. @throws NamespaceTaken */
async function claim(tx: Writer, contents: readonly { place: Place }[], nowMs: number): Promise<void> {
  const claims = new Map(
    contents.flatMap(({ place }) => (place.claims ? [[place.claims.namespace, place.claims]] : [])),
  );
  for (const claimed of claims.values()) await claimNamespace(tx, claimed, nowMs);
}

function ownerOf({ repository }: Place): { repository: RepositoryName; upstream: undefined } {
  return { repository, upstream: undefined };
}
