/** What a webhook's request holds: pure functions of events. Both formats are told in docs/operations.md, "Webhooks". */
import { hash } from "node:crypto";
import type { Bytes } from "../base/clock.ts";
import type { WebhookConfig } from "../config/schema.ts";
import type { ImageAction, ImageEvent } from "./event.ts";

export type Format = WebhookConfig["format"];

/** Which entrepot speaks. */
export interface Origin {
  /** `server.publicUrl`, without a slash at its end. */
  publicUrl: string | undefined;
  hostname: string;
  /** Of this run of the daemon: another one after a restart. */
  instanceId: string;
}

export interface Batch {
  contentType: string;
  body: string;
  events: readonly ImageEvent[];
}

export const MAX_BATCH_EVENTS = 100;
export const MAX_BATCH_BYTES: Bytes = 256 * 1024;

const METHODS: Record<ImageAction, string> = { push: "PUT", pull: "GET", delete: "DELETE", mount: "POST" };

/**
 * As many of the events, from the first, as a request may hold; at least one. The same events make the same batch.
 * @param events not empty
 */
export function packBatch(format: Format, events: readonly ImageEvent[], origin: Origin): Batch {
  const { contentType, head, tail, write } = FORMATS[format];
  const written: string[] = [];
  let sizeBytes = head.length + tail.length;
  for (const event of events.slice(0, MAX_BATCH_EVENTS)) {
    const text = JSON.stringify(write(event, origin));
    sizeBytes += Buffer.byteLength(text) + 1;
    if (sizeBytes > MAX_BATCH_BYTES && written.length > 0) break;
    written.push(text);
  }
  return { contentType, body: `${head}${written.join(",")}${tail}`, events: events.slice(0, written.length) };
}

/** A request that tells of nothing, for a look at whether it arrives. @param id a UUID */
export function pingBatch(format: Format, id: string, atMs: number, origin: Origin): Batch {
  const { contentType, head, tail, ping } = FORMATS[format];
  return { contentType, body: `${head}${JSON.stringify(ping(id, atMs, origin))}${tail}`, events: [] };
}

/** What a delivery is called: the same for every try of the same events to the same endpoint. */
export function deliveryId(endpoint: string, events: readonly ImageEvent[]): string {
  return uuidOf(["delivery", endpoint, ...events.map(eventId)]);
}

/** What an event is called outside: the same in every delivery, to every endpoint, in either format. */
export function eventId({ id, atMs, requestId, repository }: ImageEvent): string {
  // Ids count from one in every storage: the rest tells two of them apart.
  return uuidOf([id, atMs, requestId ?? "", repository]);
}

/** Version 8: its bits are a hash. Source: RFC 9562 §5.8 */
function uuidOf(facts: readonly (string | number)[]): string {
  const hex = hash("sha256", JSON.stringify(facts), "hex");
  const variant = (0x8 | (Number.parseInt(hex.charAt(16), 16) & 0x3)).toString(16);
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}

interface Writing {
  contentType: string;
  head: string;
  tail: string;
  write: (event: ImageEvent, origin: Origin) => object;
  ping: (id: string, atMs: number, origin: Origin) => object;
}

const FORMATS: Record<Format, Writing> = {
  // Source: distribution, "Work with notifications"
  distribution: {
    contentType: "application/vnd.docker.distribution.events.v2+json",
    head: '{"events":[',
    tail: "]}",
    write: (event, origin) => ({
      id: eventId(event),
      timestamp: new Date(event.atMs).toISOString(),
      action: event.action,
      target: targetOf(event, origin),
      request: requestOf(event, origin),
      actor: event.actor === undefined ? {} : { name: event.actor },
      source: sourceOf(origin),
    }),
    ping: (id, atMs, origin) => ({
      id,
      timestamp: new Date(atMs).toISOString(),
      action: "ping",
      target: {},
      request: {},
      actor: {},
      source: sourceOf(origin),
    }),
  },
  // Source: CloudEvents 1.0, JSON event format, "JSON Batch Format"
  cloudevents: {
    contentType: "application/cloudevents-batch+json; charset=utf-8",
    head: "[",
    tail: "]",
    write: (event, origin) => ({
      specversion: "1.0",
      id: eventId(event),
      source: eventSource(origin),
      type: `io.entrepot.image.${event.action}`,
      subject: subjectOf(event),
      time: new Date(event.atMs).toISOString(),
      datacontenttype: "application/json",
      data: {
        action: event.action,
        repository: event.repository,
        tag: event.tag,
        digest: event.digest,
        mediaType: mediaTypeOf(event),
        size: event.sizeBytes,
        url: contentUrl(event, origin),
        from: mountedFrom(event),
        actor: event.actor,
        request:
          event.requestId === undefined
            ? undefined
            : { id: event.requestId, address: event.address, agent: event.agent },
      },
    }),
    ping: (id, atMs, origin) => ({
      specversion: "1.0",
      id,
      source: eventSource(origin),
      type: "io.entrepot.ping",
      time: new Date(atMs).toISOString(),
    }),
  },
};

function targetOf(event: ImageEvent, origin: Origin): object {
  return {
    mediaType: mediaTypeOf(event),
    size: event.sizeBytes,
    digest: event.digest,
    // The older name of size, which some receivers still read.
    length: event.sizeBytes,
    repository: event.repository,
    fromRepository: mountedFrom(event),
    url: contentUrl(event, origin),
    tag: event.tag,
  };
}

function requestOf({ requestId, address, action, agent }: ImageEvent, { publicUrl }: Origin): object {
  if (requestId === undefined) return {};
  const host = publicUrl === undefined ? undefined : new URL(publicUrl).host;
  return { id: requestId, addr: address, host, method: METHODS[action], useragent: agent };
}

function sourceOf({ publicUrl, hostname, instanceId }: Origin): object {
  return { addr: publicUrl === undefined ? hostname : new URL(publicUrl).host, instanceID: instanceId };
}

function eventSource({ publicUrl, hostname }: Origin): string {
  return publicUrl ?? `urn:entrepot:${encodeURIComponent(hostname)}`;
}

function subjectOf({ repository, tag, digest }: ImageEvent): string {
  if (tag !== undefined) return `${repository}:${tag}`;
  return digest === undefined ? repository : `${repository}@${digest}`;
}

function mountedFrom({ action, detail }: ImageEvent): string | undefined {
  return action === "mount" ? detail : undefined;
}

function isAboutBlob({ action, detail }: ImageEvent): boolean {
  return action === "mount" || (action === "delete" && detail === "blob");
}

function mediaTypeOf(event: ImageEvent): string | undefined {
  return event.mediaType ?? (isAboutBlob(event) ? "application/octet-stream" : undefined);
}

/** Undefined where nobody said under which address clients find this registry. */
function contentUrl(event: ImageEvent, { publicUrl }: Origin): string | undefined {
  const { repository, digest, tag } = event;
  const reference = digest ?? tag;
  if (publicUrl === undefined || reference === undefined) return undefined;
  return `${publicUrl}/v2/${repository}/${isAboutBlob(event) ? "blobs" : "manifests"}/${reference}`;
}
