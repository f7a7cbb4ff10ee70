/**
 * The schema, one entry a version; an entry that has been released never changes.
 *
 * repositories        every name ever seen; upstream is NULL for hosted ones
 * blobs               content in files; upstream says from where it was cached, NULL means pushed and never evicted
 * manifests           content in the database, byte for byte; subject, artifact_type and annotations answer the referrers of a subject
 * manifest_children   the edges from a manifest to what it points to, with the size that its descriptor claims
 * repository_content  who may reach which digest: the right to read is per repository, though content is stored once
 * tags                checked_at: when upstream last confirmed it; origin: when and where it was pushed first, NULL: here, when it was updated
 * site                one row: what this registry is called in the marks of its pushes, as long as the database lasts
 * users               who logs in with a password; NULL: none yet, so only with tokens
 * teams, team_members who works together, and as what
 * namespaces          hosted namespaces that a push or somebody has made, beside the configured ones; neither team nor user: it is global
 * grants              roles that teams have, at most, in namespaces of others, and upstreams that their members may pull from
 * robots              programs that log in; secret is the SHA-256 of what was shown once, limits is JSON
 * tokens              what users log in with in place of their password; likewise
 * signing_keys        of the token service: an authority that lasts, and signers that it vouches for in turn
 * uploads             sessions; how far one has come is the size of its file
 * jobs                work that outlives the process: at most one unfinished one of a kind with the same dedupe key
 *                     subject is what it is about, parent the job that it is a part of; asked is what a running one is to become
 * job_lines           what a job has to say of its work
 * schedules           when a schedule last came due
 * events              what happened, one row each; outlives what it is about
 * webhook_cursors     up to which event an endpoint has been told; while it fails: where the batch ends that is tried, how often it was
 *                     tried, and how often in a row the endpoint has failed
 * webhook_failures    ranges of events that an endpoint did not take
 * replication_rules   rules made by the API, beside the configured ones
 * replication_states  of a rule: why it is paused; its last run; when it was last seen to be in step
 * replication_cursor  one row while a rule waits for pushes: up to which event they have been looked at
 * replication_copies  what a rule's copies were made of; owned: no other tag was there before; gone_since: the source was first without it
 * replication_moves   what tags of targets led to before a run moved them, NULL: they were not there
 * replication_rewrites what indexes became when they were made anew with some of their platforms: true for good, forgotten after a while
 * replication_uploads how far uploads to targets have come, to be gone on with after a restart
 * namespace_content   what the hosted repositories of a namespace hold, each content once, and how many of them hold it
 * namespace_usage     the bytes of it; both are kept by triggers, whatever changes repository_content
 * listings            answers of upstreams to tag lists and referrers, with a short life
 */
export const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE repositories (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    upstream TEXT,
    namespace TEXT GENERATED ALWAYS AS (
      CASE WHEN upstream IS NULL THEN substr(name, 1, instr(name || '/', '/') - 1) END) STORED,
    created_at INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX repositories_hosted ON repositories (name) WHERE upstream IS NULL;
  CREATE INDEX repositories_cached ON repositories (name) WHERE upstream IS NOT NULL;
  CREATE INDEX repositories_by_namespace ON repositories (namespace) WHERE namespace IS NOT NULL;
  CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    upstream TEXT,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX blobs_by_use ON blobs (used_at) WHERE upstream IS NOT NULL;
  CREATE INDEX blobs_by_size ON blobs (size) WHERE upstream IS NOT NULL;
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
    pulled_at INTEGER,
    origin_at INTEGER,
    origin_by TEXT,
    PRIMARY KEY (repository_id, name)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX tags_by_digest ON tags (digest);
  CREATE TABLE site (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
  INSERT INTO site (id) VALUES (lower(hex(randomblob(8))));
  CREATE TABLE listings (
    repository_id INTEGER NOT NULL REFERENCES repositories (id),
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    fetched_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, kind, subject)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    password TEXT,
    admin INTEGER NOT NULL DEFAULT 0,
    disabled INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    password_at INTEGER,
    used_at INTEGER
  ) STRICT;
  CREATE TABLE teams (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE team_members (
    team_id INTEGER NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'contributor', 'owner')),
    added_at INTEGER NOT NULL,
    PRIMARY KEY (team_id, user_id)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX team_members_by_user ON team_members (user_id);
  CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    visibility TEXT NOT NULL DEFAULT 'private' CHECK (visibility IN ('private', 'protected', 'public')),
    team_id INTEGER REFERENCES teams (id),
    user_id INTEGER REFERENCES users (id),
    description TEXT NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL,
    CHECK (team_id IS NULL OR user_id IS NULL)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX namespaces_by_team ON namespaces (team_id) WHERE team_id IS NOT NULL;
  CREATE INDEX namespaces_by_user ON namespaces (user_id) WHERE user_id IS NOT NULL;
  CREATE TABLE grants (
    kind TEXT NOT NULL CHECK (kind IN ('namespace', 'upstream')),
    name TEXT NOT NULL,
    team_id INTEGER NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'contributor', 'owner')),
    granted_at INTEGER NOT NULL,
    PRIMARY KEY (kind, name, team_id)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX grants_by_team ON grants (team_id);
  CREATE TABLE robots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL DEFAULT '',
    team_id INTEGER REFERENCES teams (id) ON DELETE CASCADE,
    secret TEXT UNIQUE,
    limits TEXT NOT NULL,
    disabled INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    used_at INTEGER
  ) STRICT;
  CREATE INDEX robots_by_team ON robots (team_id);
  CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    secret TEXT NOT NULL UNIQUE,
    limits TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    used_at INTEGER,
    UNIQUE (user_id, name)
  ) STRICT;
  CREATE TABLE signing_keys (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('authority', 'signer')),
    private_key TEXT NOT NULL,
    certificate TEXT NOT NULL,
    created_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    repository TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    started_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    dedupe TEXT,
    subject TEXT,
    parent INTEGER,
    payload TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'paused', 'done', 'dead', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 0,
    run_at INTEGER NOT NULL,
    lease TEXT,
    leased_until INTEGER,
    asked TEXT CHECK (asked IN ('cancel', 'pause')),
    progress TEXT,
    result TEXT,
    error TEXT,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER
  ) STRICT;
  CREATE UNIQUE INDEX jobs_unfinished ON jobs (kind, dedupe) WHERE dedupe IS NOT NULL AND state IN ('queued', 'running', 'paused');
  CREATE INDEX jobs_dead ON jobs (kind, dedupe) WHERE dedupe IS NOT NULL AND state = 'dead';
  CREATE INDEX jobs_due ON jobs (kind, priority DESC, run_at, id) WHERE state = 'queued';
  CREATE INDEX jobs_next ON jobs (kind, run_at) WHERE state = 'queued';
  CREATE INDEX jobs_by_kind ON jobs (kind, state);
  CREATE INDEX jobs_by_state ON jobs (state, kind);
  CREATE INDEX jobs_leased ON jobs (leased_until) WHERE state = 'running';
  CREATE INDEX jobs_ended ON jobs (kind, ended_at) WHERE ended_at IS NOT NULL;
  CREATE INDEX jobs_by_subject ON jobs (subject, id) WHERE subject IS NOT NULL;
  CREATE INDEX jobs_by_parent ON jobs (parent, id, state) WHERE parent IS NOT NULL;
  CREATE TABLE job_lines (
    id INTEGER PRIMARY KEY,
    job_id INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    at INTEGER NOT NULL,
    text TEXT NOT NULL
  ) STRICT;
  CREATE INDEX job_lines_by_job ON job_lines (job_id, id);
  CREATE TABLE schedules (
    name TEXT PRIMARY KEY,
    ended_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    action TEXT NOT NULL,
    outcome TEXT NOT NULL,
    repository TEXT,
    subject TEXT,
    tag TEXT,
    digest TEXT,
    media_type TEXT,
    size INTEGER,
    actor TEXT,
    address TEXT,
    agent TEXT,
    request_id TEXT,
    detail TEXT
  ) STRICT;
  CREATE INDEX events_by_time ON events (at);
  CREATE INDEX events_by_repository ON events (repository, at) WHERE repository IS NOT NULL;
  CREATE INDEX events_by_subject ON events (subject, at) WHERE subject IS NOT NULL;
  CREATE INDEX events_by_digest ON events (substr(digest, 8, 16), at) WHERE digest IS NOT NULL;
  CREATE INDEX events_by_actor ON events (actor, at) WHERE actor IS NOT NULL;
  CREATE INDEX events_refused ON events (at) WHERE outcome <> 'done';
  CREATE INDEX events_changing ON events (action, at) WHERE action <> 'pull';
  CREATE INDEX events_refused_changing ON events (action, at) WHERE outcome <> 'done' AND action <> 'pull';
  CREATE INDEX events_changing_repository ON events (repository, at) WHERE action <> 'pull' AND repository IS NOT NULL;
  CREATE TABLE webhook_cursors (
    endpoint TEXT PRIMARY KEY,
    event_id INTEGER NOT NULL,
    delivered_at INTEGER,
    batch_end INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    failing_since INTEGER,
    retry_at INTEGER,
    error TEXT
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE webhook_failures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL,
    first_event INTEGER NOT NULL,
    last_event INTEGER NOT NULL,
    events INTEGER NOT NULL,
    error TEXT NOT NULL,
    at INTEGER NOT NULL,
    redelivered_at INTEGER
  ) STRICT;
  CREATE INDEX webhook_failures_by_endpoint ON webhook_failures (endpoint, id);
  CREATE TABLE replication_rules (
    name TEXT PRIMARY KEY,
    rule TEXT NOT NULL,
    changed_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE replication_states (
    rule TEXT PRIMARY KEY,
    paused TEXT,
    run INTEGER,
    run_at INTEGER,
    settled_at INTEGER
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE replication_cursor (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    event_id INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE replication_copies (
    rule TEXT NOT NULL,
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest TEXT NOT NULL,
    source TEXT NOT NULL,
    source_digest TEXT NOT NULL,
    owned INTEGER NOT NULL,
    copied_at INTEGER NOT NULL,
    gone_since INTEGER,
    PRIMARY KEY (rule, registry, repository, tag)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE replication_moves (
    run INTEGER NOT NULL,
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    tag TEXT NOT NULL,
    was TEXT,
    became TEXT NOT NULL,
    at INTEGER NOT NULL,
    undone_at INTEGER,
    PRIMARY KEY (run, registry, repository, tag)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE replication_rewrites (
    source TEXT NOT NULL,
    platforms TEXT NOT NULL,
    digest TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (source, platforms)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX replication_rewrites_by_age ON replication_rewrites (at);
  CREATE TABLE replication_uploads (
    key TEXT PRIMARY KEY,
    session TEXT NOT NULL,
    at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE namespace_content (
    namespace TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    links INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE namespace_usage (
    namespace TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TRIGGER content_linked AFTER INSERT ON repository_content BEGIN
    INSERT INTO namespace_content (namespace, digest, size, links)
      SELECT r.namespace, NEW.digest, COALESCE(
          (SELECT size FROM blobs WHERE digest = NEW.digest), (SELECT size FROM manifests WHERE digest = NEW.digest), 0), 1
        FROM repositories r WHERE r.id = NEW.repository_id AND r.namespace IS NOT NULL
      ON CONFLICT (namespace, digest) DO UPDATE SET links = links + 1;
  END;
  CREATE TRIGGER content_unlinked AFTER DELETE ON repository_content BEGIN
    UPDATE namespace_content SET links = links - 1
      WHERE namespace = (SELECT namespace FROM repositories WHERE id = OLD.repository_id) AND digest = OLD.digest;
  END;
  CREATE TRIGGER content_needed_no_more AFTER UPDATE OF links ON namespace_content WHEN NEW.links = 0 BEGIN
    DELETE FROM namespace_content WHERE namespace = NEW.namespace AND digest = NEW.digest;
  END;
  CREATE TRIGGER usage_grown AFTER INSERT ON namespace_content BEGIN
    INSERT INTO namespace_usage (namespace, bytes) VALUES (NEW.namespace, NEW.size)
      ON CONFLICT (namespace) DO UPDATE SET bytes = bytes + excluded.bytes;
  END;
  CREATE TRIGGER usage_shrunk AFTER DELETE ON namespace_content BEGIN
    UPDATE namespace_usage SET bytes = bytes - OLD.size WHERE namespace = OLD.namespace;
  END;
  `,
];
