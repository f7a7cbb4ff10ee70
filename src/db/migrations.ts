/**
 * The schema, one entry a version; an entry that has been released never changes.
 *
 * repositories        every name ever seen; upstream is NULL for hosted ones
 * blobs               content in files; upstream says from where it was cached, NULL means pushed and never evicted
 * manifests           content in the database, byte for byte; subject, artifact_type and annotations answer the referrers of a subject
 * manifest_children   the edges from a manifest to what it points to, with the size that its descriptor claims
 * repository_content  who may reach which digest: the right to read is per repository, though content is stored once
 * tags                checked_at: when upstream last confirmed it
 * namespaces          hosted namespaces that a push has made, beside the configured ones
 * uploads             sessions; how far one has come is the size of its file
 * upkeep_runs         when garbage collection and the like last came to their end
 * listings            answers of upstreams to tag lists and referrers, with a short life
 */
export const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE repositories (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    upstream TEXT,
    created_at INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    upstream TEXT,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX blobs_by_use ON blobs (used_at) WHERE upstream IS NOT NULL;
  CREATE TABLE manifests (
    digest TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    subject TEXT,
    artifact_type TEXT,
    annotations TEXT,
    upstream TEXT,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX manifests_by_use ON manifests (used_at) WHERE upstream IS NOT NULL;
  CREATE INDEX manifests_by_subject ON manifests (subject, digest) WHERE subject IS NOT NULL;
  CREATE TABLE manifest_children (
    parent TEXT NOT NULL,
    child TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (parent, child)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX manifest_parents ON manifest_children (child);
  CREATE TABLE repository_content (
    repository_id INTEGER NOT NULL REFERENCES repositories (id),
    digest TEXT NOT NULL,
    linked_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, digest)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX repository_content_by_digest ON repository_content (digest);
  CREATE TABLE tags (
    repository_id INTEGER NOT NULL REFERENCES repositories (id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    etag TEXT,
    updated_at INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, name)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX tags_by_digest ON tags (digest);
  CREATE TABLE listings (
    repository_id INTEGER NOT NULL REFERENCES repositories (id),
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    fetched_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, kind, subject)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    repository TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    started_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE upkeep_runs (
    job TEXT PRIMARY KEY,
    ended_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  `,
];
