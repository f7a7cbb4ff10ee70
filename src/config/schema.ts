/**
 * The configuration: every key with its default, unit, meaning and check, once. Types, the JSON Schema, the names of
 * environment variables and what `config print` shows are all derived from here.
 *
 * Keys in YAML are the keys here. Durations and sizes are texts with a unit on the outside, milliseconds and bytes inside.
 */
import { BlockList, isIP, isIPv6 } from "node:net";
import { validRange } from "semver";
import { z } from "zod";
import type { LogFormat, LogLevel } from "../base/log.ts";
import { isHidden } from "../oci/hidden-place.ts";
import { isComponent } from "../oci/reference.ts";
import { access, serverTls, visibility } from "./access-schema.ts";
import { endpoint } from "./endpoint-schema.ts";
import { selfFaults } from "./replication-checks.ts";
import { replication } from "./replication-schema.ts";
import {
  reading,
  matching,
  A_WAIT,
  duration,
  anySize,
  size,
  whole,
  section,
  httpUrl,
  withoutCredentials,
  isNetwork,
  isCron,
  host,
  glob,
  nonEmpty,
  readSecret,
} from "./fields.ts";

type DeepReadonly<T> = T extends (infer Item)[]
  ? readonly DeepReadonly<Item>[]
  : T extends object
    ? { readonly [Key in keyof T]: DeepReadonly<T[Key]> }
    : T;

/** Durations are milliseconds, sizes bytes, bandwidths bytes a second. Deeply frozen. */
export type Config = DeepReadonly<z.output<typeof configSchema>>;
export type UpstreamConfig = Config["upstreams"][string];
/** One rule of replication. */
export type ReplicationRule = Config["replication"]["rules"][number];
export type WebhookConfig = Config["webhooks"][number];
/** One address of a registry: an upstream's own, or one of its fallbacks. */
export type EndpointConfig = UpstreamConfig["fallbacks"][number];
/** Where credentials come from; a password file has been read already. */
export type AuthConfig = NonNullable<EndpointConfig["auth"]>;

/** Where the server listens. Port 0 takes a free one; without a host, on every interface. */
export type ListenAddress = { host: string | undefined; port: number } | { path: string };

/** Reads `host:port`, `:port`, `[v6]:port` or `unix:/path`; undefined for anything else. */
export function parseListen(text: string): ListenAddress | undefined {
  if (text.startsWith("unix:")) return text.length > "unix:".length ? { path: text.slice("unix:".length) } : undefined;
  const [, v6, name = "", digits = ""] = /^(?:\[([^\]]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})$/.exec(text) ?? [];
  const port = Number(digits);
  if (digits === "" || port > 65_535 || (v6 !== undefined && !isIPv6(v6))) return undefined;
  const host = v6 ?? name;
  return { host: host === "" ? undefined : host, port };
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

/** Whether `server.listen` is reached from this machine only. */
export function listensHere(listen: string): boolean {
  const address = parseListen(listen);
  if (!address) return false;
  if ("path" in address || address.host === "localhost") return true;
  const { host = "" } = address;
  return isIP(host) !== 0 && LOOPBACK.check(host, isIPv6(host) ? "ipv6" : "ipv4");
}

const upstream = z
  .strictObject({
    ...endpoint,
    default: z
      .boolean()
      .default(false)
      .describe("Whether it answers names that start with no upstream's name; at most one does."),
    aliases: z.array(host).prefault([]).describe("Further names of it: hosts, or host:port."),
    fallbacks: z
      .array(z.strictObject(endpoint))
      .prefault([])
      .describe("Further addresses of the same content, asked in order when the first fails."),
    allow: z
      .array(glob)
      .prefault(["**"])
      .describe("Globs of the repositories (named without the upstream) that may be pulled."),
    deny: z.array(glob).prefault([]).describe("Globs of the repositories that may not be pulled; stronger than allow."),
    visibility: visibility
      .optional()
      .describe(
        "Who may pull what is cached of it: everybody (public), whoever has logged in (protected), or members of teams that it is granted to (private). Without it: public, or private where auth is given.",
      ),
    tagTtl: duration("5m", "How long a tag is believed without asking."),
    maxStale: duration("30d", "How long a tag may be served while upstream cannot be asked."),
    notFoundTtl: duration("30s", "How long an absence is believed."),
    listTtl: duration("1m", "How long a list of tags or referrers is believed."),
    whenGone: z
      .enum(["notFound", "stale"])
      .default("notFound")
      .describe("A cached tag that was deleted upstream: notFound follows upstream, stale keeps serving it."),
    prefetch: z
      .boolean()
      .default(true)
      .describe("Whether a manifest's config and layers start to flow before a client asks for them."),
    ranges: section(
      {
        connections: whole(4, 1, 16, "Connections that one large blob is read over; 1 turns this off."),
        minSize: size("32MiB", "Smaller blobs are read over one connection."),
        segment: size("8MiB", "What one ranged request asks for.", 2 ** 20),
        slowerThan: size("64MiB", "A connection at least this fast stays alone.", 0, "A size per second"),
      },
      "Reading one blob in parallel from an upstream that is slow per connection.",
    ),
    rateLimit: section(
      {
        keep: whole(
          10,
          0,
          Number.MAX_SAFE_INTEGER,
          "At or below so many remaining requests of the upstream's rate limit, tags are no longer revalidated.",
        ),
      },
      "Respect for a rate limit that the upstream announces.",
    ),
  })
  .describe("A registry to mirror.");

/** An upstream of which only the address is configured. */
export function upstreamAt(url: string): UpstreamConfig {
  return upstream.parse({ url });
}

const webhook = z
  .strictObject({
    name: matching(
      (text) => /^[a-z0-9][a-z0-9-]{0,62}$/.test(text),
      "is not a name",
      "write up to 63 lower-case letters, digits and hyphens",
    ).describe("What it is called in metrics, jobs and the API; its place in the events is kept under this name."),
    url: reading(
      (text) => withoutCredentials(URL.canParse(text) ? new URL(text) : undefined)?.href,
      "is not an http or https URL without credentials",
      "write an address such as https://ci.example.com/hook; the key of signatures goes into secretFile",
    )
      .refine((url) => /^https?:/.test(url), "is not an http or https URL")
      .describe("Where events are posted to; redirects are not followed."),
    secret: nonEmpty
      .optional()
      .meta({ description: "Key of the HMAC-SHA256 signature. A secret: prefer secretFile.", writeOnly: true }),
    secretFile: nonEmpty.optional().describe("File that holds the secret; a line break at its end is left out."),
    format: z
      .enum(["distribution", "cloudevents"])
      .default("distribution")
      .describe("The envelope of docker-registry's notifications, or a batch of CloudEvents 1.0."),
    actions: z
      .array(z.enum(["push", "pull", "delete", "mount"]))
      .prefault(["push", "delete", "mount"])
      .describe("Which events it is told."),
    repositories: z.array(glob).prefault(["**"]).describe("Globs of the repositories whose events it is told."),
    timeout: duration("10s", "How long it may take to answer.", A_WAIT),
    attempts: whole(12, 1, 100, "How often a batch is tried before it is set aside, to be redelivered by hand."),
    allowPrivate: z
      .boolean()
      .default(false)
      .describe("Whether its public-looking name may resolve to a private address."),
  })
  .transform(({ secretFile, ...given }, context) => {
    if (secretFile === undefined) return given;
    const refuse = (message: string, remedy: string) => {
      context.issues.push({ code: "custom", message, params: { remedy }, path: ["secretFile"], input: undefined });
      return z.NEVER;
    };
    if (given.secret !== undefined) return refuse("stands beside secret", "keep one of secret and secretFile");
    const read = readSecret(secretFile);
    return "secret" in read ? { ...given, secret: read.secret } : refuse(read.message, read.remedy);
  })
  .describe("An address that is told what happens.");

const retentionRule = z
  .strictObject({
    repositories: z.array(glob).min(1).describe("Globs of the hosted repositories that it is about."),
    keep: section(
      {
        tags: z.array(glob).prefault([]).describe("Globs of tags that always stay."),
        semver: matching(
          (text) => text.trim() !== "" && validRange(text) !== null,
          "is not a range of versions",
          'write a range such as ">=2 <4" or "^1.4"',
        )
          .optional()
          .describe("Tags that are versions in this range stay, such as >=2 <4."),
        latestPushed: whole(0, 0, 10_000, "So many of the tags that were pushed last stay."),
        latestPulled: whole(0, 0, 10_000, "So many of the tags that were pulled last stay."),
        pushedWithin: duration("0s", "Tags that were pushed since then stay."),
        pulledWithin: duration("0s", "Tags that were pulled since then stay."),
      },
      "What stays: a tag that any of these names.",
    ),
    removeAll: z.boolean().default(false).describe("Whether the rule may remove every tag that it is about."),
  })
  .describe("Which tags stay. Of several rules about a repository the first one counts.");

const DOCKER_HUB = {
  url: "https://registry-1.docker.io",
  default: true,
  aliases: ["index.docker.io", "registry-1.docker.io"],
};

export function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Gives an entry `docker.io` the address, names and rank that it has without a file, for the keys that it leaves out. */
function withDockerHub(given: unknown): unknown {
  if (given === null) return { "docker.io": DOCKER_HUB };
  if (!isMapping(given) || !Object.hasOwn(given, "docker.io")) return given;
  const own = given["docker.io"] ?? {};
  if (!isMapping(own)) return given;
  const { default: rank, ...hub } = DOCKER_HUB;
  const outranked = Object.entries(given).some(
    ([name, it]) => name !== "docker.io" && isMapping(it) && it["default"] === true,
  );
  return { ...given, "docker.io": { ...hub, default: rank && !outranked, ...own } };
}

const componentKey = z.string().refine(isComponent);

export const configSchema = z
  .strictObject({
    server: section(
      {
        listen: matching(
          (text) => parseListen(text) !== undefined,
          "is not an address to listen on",
          'write host:port, :port, "[v6]:port" or unix:/path',
        )
          .prefault("127.0.0.1:5000")
          .describe("Where to listen: host:port, :port (every interface), [v6]:port or unix:/path."),
        publicUrl: reading(
          (text) => {
            const url = withoutCredentials(httpUrl(text));
            return url?.pathname === "/" ? url.origin : undefined;
          },
          "is not an http or https URL without a path",
          "write the address that clients use, such as https://registry.example.com",
        )
          .optional()
          .describe("The address that clients use; without it, Locations are relative."),
        trustedProxies: z
          .array(
            matching(
              isNetwork,
              "is neither an address nor a network",
              "write an IP address or a CIDR, such as 10.0.0.0/8",
            ),
          )
          .prefault([])
          .describe("Addresses and networks (CIDR) whose X-Forwarded-* and Forwarded headers count."),
        drainTimeout: duration("30s", "How long running requests may go on after SIGTERM.", {
          min: 0,
          max: A_WAIT.max,
        }),
        headersTimeout: duration("20s", "How long a client may take to send a request's head.", A_WAIT),
        progress: section(
          {
            minBytes: size("16KiB", "What a transfer has to move in an interval.", 1),
            interval: duration("30s", "The interval.", A_WAIT),
          },
          "A transfer with a client that moves less than minBytes in an interval is cut.",
        ),
        tls: serverTls.optional(),
      },
      "The HTTP server.",
    ),
    log: section(
      {
        level: z
          .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"] satisfies LogLevel[])
          .default("info")
          .describe("The least severe lines that are written."),
        format: z
          .enum(["auto", "json", "pretty"] satisfies LogFormat[])
          .default("auto")
          .describe("auto: pretty on a terminal, JSON lines elsewhere."),
        requests: z.boolean().default(true).describe("Whether every request gets a line."),
      },
      "The log, on standard output.",
    ),
    storage: section(
      {
        root: nonEmpty
          .prefault("./data")
          .describe("Folder of content and database; a relative path starts at the working directory."),
        cacheMaxSize: size("50GiB", "Cached content beyond it goes, least recently used first."),
        minFree: size("2GiB", "Free space of the file system below which cached content goes, too."),
        memoryCache: size("64MiB", "Memory for manifests and small blobs that are asked for often."),
      },
      "What is kept, and where.",
    ),
    upstreams: z
      .preprocess(withDockerHub, z.record(componentKey, upstream))
      .prefault({ "docker.io": DOCKER_HUB })
      .describe(
        "The registries behind this mirror, by name: the first component of a repository's name. Giving any replaces the built-in docker.io; an entry docker.io keeps the built-in url, default and aliases unless it says otherwise.",
      ),
    hosted: section(
      {
        namespaces: z
          .array(
            matching(
              (text) => isComponent(text) && !text.includes(".") && text !== "library",
              "cannot be a hosted namespace",
              "write one component of a repository's name, without a dot, and not library",
            ),
          )
          .prefault([])
          .describe(
            "First components of names that are kept here alone and never looked up elsewhere. A first push makes further ones.",
          ),
        delete: z.boolean().default(true).describe("Whether tags, manifests and blobs can be deleted."),
        immutableTags: z
          .record(nonEmpty, z.array(nonEmpty).describe("Globs of tags."))
          .prefault({})
          .describe("Tags that, once pushed, are neither moved nor deleted: globs of tags by globs of namespaces."),
        uploadLife: duration("7d", "An upload that nobody goes on with is given up after so long.", { min: 60_000 }),
        quotas: z
          .record(nonEmpty, anySize("Bytes that the content of a namespace may take, each content counted once.", 1))
          .prefault({})
          .describe("What a namespace may hold: a size by globs of namespaces; the first that matches counts."),
        chunkMinLength: size(
          "0",
          "Told to clients that upload in chunks: the least that one should hold. 0: nothing is told.",
        ),
      },
      "Repositories that live here.",
    ),
    gc: section(
      {
        interval: duration("1d", "How often content that nothing points to is removed. 0s: only by hand."),
        grace: duration("24h", "How long such content stays after its last use: a push that is under way needs it."),
        deleteUntagged: z
          .boolean()
          .default(false)
          .describe(
            "Whether manifests without a tag go, too, when they are older than grace, belong to no index and refer to no manifest that stays.",
          ),
      },
      "Garbage collection of what was pushed.",
    ),
    scrub: section(
      {
        interval: duration("30d", "How often everything that is stored is read and proven. 0s: only by hand."),
        bandwidth: size("32MiB", "Bytes per second that it reads at most.", 1),
      },
      "The search for damage on the disk.",
    ),
    access,
    events: section(
      {
        keep: duration("90d", "How long what happened is kept. 0s: for ever."),
        pulls: z.boolean().default(true).describe("Whether pulls are kept, too."),
      },
      "The record of pushes, pulls, deletes, mounts, logins and changes of rights.",
    ),
    webhooks: z.array(webhook).prefault([]).describe("Addresses that are told what happens."),
    retention: section(
      {
        schedule: matching(isCron, "is not a cron expression", "write five fields such as 30 3 * * *, or never")
          .prefault("30 3 * * *")
          .describe("When tags are removed that no rule keeps: a cron expression in UTC, or never."),
        rules: z.array(retentionRule).prefault([]).describe("Which tags stay."),
      },
      "Removal of old tags from hosted repositories. Repositories without a rule keep all.",
    ),
    replication,
  })
  // Also after other faults, so that all are told at once: nothing about the shape may be taken for granted.
  .superRefine(checkNames, { when: () => true })
  .superRefine(checkReach, { when: () => true })
  .superRefine(({ server, replication: { rules } }, context) => {
    for (const { message, remedy, path } of selfFaults(server, rules)) {
      context.addIssue({ code: "custom", message, path: ["replication", ...path], params: { remedy } });
    }
  });

/** Every name leads to one place: upstreams, their aliases and hosted namespaces do not overlap, and one upstream at most is the default; no two webhooks share one. */
function checkNames(config: unknown, context: z.RefinementCtx): void {
  const refuse = (path: PropertyKey[], message: string, remedy: string) =>
    context.addIssue({ code: "custom", message, path, params: { remedy } });
  const { upstreams, hosted, webhooks }: Record<string, unknown> = isMapping(config) ? config : {};
  const entries = Object.entries(isMapping(upstreams) ? upstreams : {}).filter(
    (entry): entry is [string, Record<string, unknown>] => isMapping(entry[1]),
  );

  const [first, ...others] = entries.filter(([, upstream]) => upstream["default"] === true).map(([name]) => name);
  for (const name of others) {
    refuse(["upstreams", name, "default"], `is true, and so is that of ${first}`, "keep one default upstream");
  }

  const owners = new Map(entries.map(([name]) => [name, name]));
  for (const [name, upstream] of entries) {
    if (isHidden(name)) refuse(["upstreams", name], "is where copies of rules lie in the cache", "choose another name");
    for (const [index, alias] of texts(upstream["aliases"])) {
      const owner = owners.get(alias);
      if (owner === undefined) owners.set(alias, name);
      else
        refuse(
          ["upstreams", name, "aliases", index],
          `is a name of upstream ${owner} already`,
          "remove one of the two",
        );
    }
  }

  for (const [index, namespace] of texts(isMapping(hosted) ? hosted["namespaces"] : undefined)) {
    const owner = owners.get(namespace);
    if (owner !== undefined) {
      refuse(["hosted", "namespaces", index], `is a name of upstream ${owner}`, "choose another namespace");
    }
  }

  const named = (Array.isArray(webhooks) ? webhooks : []).map((webhook: unknown) =>
    isMapping(webhook) ? webhook["name"] : undefined,
  );
  for (const [index, name] of texts(named)) {
    if (named.indexOf(name) < index) {
      refuse(["webhooks", index, "name"], "is the name of another webhook", "give each a name of its own");
    }
  }
}

/** Nobody opens a registry to strangers by mistake, and TLS stands where there is somebody to speak it to. */
function checkReach(config: unknown, context: z.RefinementCtx): void {
  const refuse = (path: PropertyKey[], message: string, remedy: string) =>
    context.addIssue({ code: "custom", message, path, params: { remedy } });
  const { server, access: rights }: Record<string, unknown> = isMapping(config) ? config : {};
  const { listen, tls: served } = isMapping(server) ? server : {};
  const { open, htpasswd } = isMapping(rights) ? rights : {};
  if (open === true && typeof listen === "string" && !listensHere(listen)) {
    refuse(
      ["access", "open"],
      `is true, and ${listen} is reached from other machines`,
      "write access.open: everywhere if everybody who reaches it may push and delete, or have people log in and leave it out, or listen on 127.0.0.1",
    );
  }
  if (open !== undefined && open !== false && htpasswd !== undefined) {
    refuse(
      ["access", "open"],
      "leaves access.htpasswd without effect: nobody has to log in",
      "keep one of the two; with access.open: false whoever is in the file logs in",
    );
  }
  if (served !== undefined && typeof listen === "string" && listen.startsWith("unix:")) {
    refuse(["server", "tls"], "is not for a Unix socket", "remove it, or listen on host:port");
  }
}

function texts(value: unknown): [index: number, text: string][] {
  const items: unknown[] = Array.isArray(value) ? value : [];
  return [...items.entries()].filter((item): item is [number, string] => typeof item[1] === "string");
}
