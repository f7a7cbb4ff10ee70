/**
 * What other registries tell of pushes to them, in the words of each. Pure.
 *
 * Sources: Docker Hub, "Webhooks"; Harbor, "Configure Webhook Notifications" (both of its formats); Quay, "Repository Notifications";
 * distribution, "Work with notifications", which Azure's registry sends one by one; CloudEvents 1.0, structured, in batches, and in headers.
 */
import { z } from "zod";
import { isDigest, type Digest } from "../oci/digest.ts";
import { isManifestType } from "../oci/manifest.ts";
import { isRepositoryName, isTag, type RepositoryName, type Tag } from "../oci/reference.ts";

/** A push, by the registry's own names. */
export interface ToldPush {
  repository: RepositoryName;
  /** Undefined: a manifest by its digest. */
  tag: Tag | undefined;
  /** Undefined: it was not told. */
  digest: Digest | undefined;
}

/** A notification that says nothing that is understood here: the message names what is. */
export class NotificationUnread extends Error {
  override readonly name = "NotificationUnread";
}

interface Told {
  repository: string;
  tag?: string | null | undefined;
  digest?: string | null | undefined;
}

const optionalText = z.string().nullish();

const dockerHub = z.object({
  push_data: z.object({ tag: optionalText }),
  repository: z.object({ repo_name: z.string() }),
});

const quay = z.object({
  repository: z.string(),
  docker_url: z.string(),
  // Of what is no push: absent. Old releases have the images' ids beside the tags.
  updated_tags: z.union([z.array(z.string()), z.record(z.string(), z.unknown())]).optional(),
});

const harborData = z.object({
  resources: z.array(z.object({ digest: optionalText, tag: optionalText })),
  repository: z.object({ repo_full_name: z.string() }),
});

const harbor = z.object({ type: z.string(), event_data: z.unknown() });

const distributionEvent = z.object({
  action: z.string(),
  // Empty in a ping.
  target: z.object({ repository: optionalText, tag: optionalText, digest: optionalText, mediaType: optionalText }),
});

const envelope = z.object({ events: z.array(distributionEvent) });

const cloudEvent = z.object({ specversion: z.string(), type: z.string(), data: z.unknown().optional() });

/** Entrepot's own. */
const imageEvent = z.object({
  action: z.string(),
  repository: z.string(),
  tag: optionalText,
  digest: optionalText,
  mediaType: optionalText,
});

/** Of what one notification tells: to read it is one turn of the event loop, and each push may add tasks. */
const MOST = 1_000;

/**
 * The pushes that a notification tells of; none where it tells of something else. Of several of one tag, the last counts.
 * @param body JSON
 * @param headers of the request, by names in lower case: a CloudEvent may have its attributes there
 * @throws NotificationUnread
 */
export function readNotification(body: unknown, headers: Readonly<Record<string, unknown>>): ToldPush[] {
  const pushes = new Map<string, ToldPush>();
  const all = readBody(body, headers);
  refuseMany(all);
  for (const told of all) {
    const push = check(told);
    // A push of what has no tag is one of its digest.
    pushes.set(`${push.repository} ${push.tag ?? push.digest}`, push);
  }
  return [...pushes.values()].filter(({ tag, digest }) => tag !== undefined || digest !== undefined);
}

function readBody(body: unknown, headers: Readonly<Record<string, unknown>>): Told[] {
  const type = headers["ce-type"];
  if (typeof headers["ce-specversion"] === "string" && typeof type === "string") return readCloudEvent(type, body);
  if (Array.isArray(body)) {
    refuseMany(body);
    return body.flatMap((one) => readOne(one));
  }
  return readOne(body);
}

function readOne(body: unknown): Told[] {
  const read =
    as(cloudEvent, body, ({ type, data }) => readCloudEvent(type, data)) ??
    as(envelope, body, ({ events }) => events.flatMap(readDistributionEvent)) ??
    as(dockerHub, body, ({ push_data: { tag }, repository }) => [{ repository: repository.repo_name, tag }]) ??
    as(harbor, body, ({ type, event_data: data }) => (type === "PUSH_ARTIFACT" ? readHarborData(data) : [])) ??
    as(quay, body, ({ repository, updated_tags: tags = [] }) =>
      (Array.isArray(tags) ? tags : Object.keys(tags)).map((tag) => ({ repository, tag })),
    ) ??
    as(distributionEvent, body, readDistributionEvent);
  if (read) return read;
  throw new NotificationUnread(
    "the notification is none that is known: send those of Docker Hub, Harbor, Quay, docker-registry or entrepot, or CloudEvents",
  );
}

function readCloudEvent(type: string, data: unknown): Told[] {
  if (type.startsWith("harbor.")) return type === "harbor.artifact.pushed" ? readHarborData(data) : [];
  if (type === "io.entrepot.ping") return [];
  const read =
    as(distributionEvent, data, readDistributionEvent) ??
    as(imageEvent, data, ({ action, ...target }) => readDistributionEvent({ action, target }));
  if (read) return read;
  throw new NotificationUnread(
    `CloudEvents of type ${type.slice(0, 100)} are not known: send those of Harbor or entrepot, or such as have action, repository, tag and digest as their data`,
  );
}

function readHarborData(data: unknown): Told[] {
  const read = as(harborData, data, ({ resources, repository }) =>
    resources.map(({ digest, tag }) => ({
      repository: repository.repo_full_name,
      digest,
      // What has no tag is told with its digest there.
      tag: tag != null && isTag(tag) ? tag : undefined,
    })),
  );
  if (read) return read;
  throw new NotificationUnread(
    "Harbor's push has no resources with repository.repo_full_name: send one of its two formats",
  );
}

function readDistributionEvent({ action, target }: z.output<typeof distributionEvent>): Told[] {
  if (action !== "push") return [];
  const { repository, mediaType, ...reference } = target;
  if (repository == null) throw new NotificationUnread("a push has no target.repository");
  const isManifest = reference.tag != null || mediaType == null || isManifestType(mediaType);
  // Layers are pushed with events of their own.
  return isManifest ? [{ repository, ...reference }] : [];
}

function refuseMany({ length }: readonly unknown[]): void {
  if (length > MOST)
    throw new NotificationUnread(`the notification tells of ${length} events: send ${MOST} at once, at most`);
}

function check({ repository, tag, digest }: Told): ToldPush {
  if (!isRepositoryName(repository)) throw new NotificationUnread("a push is to what is not a repository's name");
  if (tag && !isTag(tag)) throw new NotificationUnread(`a push to ${repository} has a tag that is none`);
  if (digest && !isDigest(digest)) throw new NotificationUnread(`a push to ${repository} has a digest that is none`);
  return {
    repository,
    tag: (tag || undefined) as Tag | undefined,
    digest: (digest || undefined) as Digest | undefined,
  };
}

function as<T>(schema: z.ZodType<T>, value: unknown, read: (parsed: T) => Told[]): Told[] | undefined {
  const parsed = schema.safeParse(value);
  return parsed.success ? read(parsed.data) : undefined;
}
