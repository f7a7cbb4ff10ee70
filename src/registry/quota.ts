import picomatch from "picomatch";
import { bytesText } from "../base/bytes-text.ts";
import type { Bytes, Clock, Milliseconds } from "../base/clock.ts";
import type { Logger } from "../base/log.ts";
import type { Metrics } from "../base/metrics.ts";
import type { Digest } from "../oci/digest.ts";
import { RegistryError } from "../oci/errors.ts";
import { namespaceOf, type RepositoryName } from "../oci/reference.ts";
import type { Allowance, Namespaces } from "../store/namespaces.ts";

/** What a namespace may hold. */
export interface Quota {
  namespace: string;
  maxBytes: Bytes;
}

/** How full a namespace is. */
export interface Standing extends Quota {
  /** What it holds, each content once. */
  usedBytes: Bytes;
  /** What others are uploading to it now. */
  underWayBytes: Bytes;
}

/** The namespace can't take it. */
export class QuotaExceeded extends RegistryError {}

/** From this share on, whoever pushes is warned. */
export const WARNING_SHARE = 0.85;

type Rules = Readonly<Record<string, Bytes>>;

/** Globs are compiled once for a configuration, not for every push. */
const compiled = new WeakMap<Rules, (namespace: string) => Bytes | undefined>();

/**
 * What a namespace may hold: the first glob that matches counts.
 * @param rules bytes by globs of namespaces; never changed
 * @returns undefined: as much as there is room for
 */
export function quotaOf(rules: Rules, namespace: string): Bytes | undefined {
  const known = compiled.get(rules) ?? compile(rules);
  compiled.set(rules, known);
  return known(namespace);
}

function compile(rules: Rules): (namespace: string) => Bytes | undefined {
  const matchers = Object.entries(rules).map(([glob, bytes]) => ({ matches: picomatch(glob), bytes }));
  return (namespace) => matchers.find(({ matches }) => matches(namespace))?.bytes;
}

/** What may still come. */
export function leftBytes({ maxBytes, usedBytes, underWayBytes }: Standing): Bytes {
  return Math.max(0, maxBytes - usedBytes - underWayBytes);
}

/** @param addedBytes what is new to the namespace @throws QuotaExceeded where it does not fit */
export function checkFits(standing: Standing, addedBytes: Bytes): void {
  if (addedBytes > leftBytes(standing)) throw refusal(standing, addedBytes);
}

/** What the client is told. */
export function refusal(standing: Standing, addedBytes: Bytes): QuotaExceeded {
  const { namespace, maxBytes, usedBytes, underWayBytes } = standing;
  const others = underWayBytes > 0 ? `, ${bytesText(underWayBytes)} more are being uploaded` : "";
  return new QuotaExceeded(
    "DENIED",
    `namespace ${namespace} may hold ${bytesText(maxBytes)} (hosted.quotas) and holds ${bytesText(usedBytes)}${others}: ` +
      `this push needs ${bytesText(addedBytes)} at least. Delete what is not needed and collect garbage, or have the quota raised`,
    { detail: { namespace, quotaBytes: maxBytes, usedBytes, underWayBytes, askedBytes: addedBytes } },
  );
}

/** @returns undefined while there is room enough */
export function warning({ namespace, maxBytes }: Quota, usedBytes: Bytes): string | undefined {
  if (usedBytes < maxBytes * WARNING_SHARE) return undefined;
  return `namespace ${namespace} holds ${bytesText(usedBytes)} of the ${bytesText(maxBytes)} that it may (${Math.floor((usedBytes / maxBytes) * 100)} %)`;
}

/** What a request brings to an upload. */
export interface Asked {
  /** Undefined: it is told at the end. */
  digest: Digest | undefined;
  /** Came with earlier requests. */
  hereBytes: Bytes;
  /** Undefined: nobody knows yet. */
  comingBytes: Bytes | undefined;
}

export interface QuotasDeps {
  /** Read whenever it is needed: it can be reloaded. */
  rules: () => Rules;
  namespaces: Namespaces;
  clock: Clock;
  log: Logger;
}

/** An upload that has not ended: its bytes are as good as in the namespace. */
interface UnderWay {
  readonly namespace: string;
  readonly digest: Digest | undefined;
  bytes: Bytes;
  /** Undefined while a request works on it. */
  restsSinceMs: Milliseconds | undefined;
}

/** An upload counts for so long after its last request: clients go on at once, and one that has left must not take room for days. */
const REST_MS: Milliseconds = 60_000;
/** Of a body of unknown length, what is left is looked up after so much. */
const STEP_BYTES: Bytes = 8 * 1024 * 1024;
/** So many namespaces become labels of metrics. */
const MOST_NAMED = 1000;

/**
 * Who may still push how much. Three times the same question: before bytes flow, as far as their number is known; while they flow, where
 * it is not; and, for certain, in the transaction that records them ({@link allowance}). The first two count what others are uploading, so
 * that nobody sends gigabytes only to be refused at the end; only the last one decides what a namespace holds.
 *
 * Content that the namespace holds costs nothing. What is refused leaves nothing behind.
 */
export class Quotas {
  readonly #deps: QuotasDeps;
  readonly #underWay = new Map<string | symbol, UnderWay>();

  constructor(deps: QuotasDeps) {
    this.#deps = deps;
  }

  /** @returns undefined: no limit */
  of(repository: RepositoryName): Quota | undefined {
    return this.ofNamespace(namespaceOf(repository));
  }

  /** As {@link of}. */
  ofNamespace(namespace: string): Quota | undefined {
    const maxBytes = quotaOf(this.#deps.rules(), namespace);
    return maxBytes === undefined ? undefined : { namespace, maxBytes };
  }

  /** What whoever has just pushed should know. */
  async warning(repository: RepositoryName): Promise<string | undefined> {
    const quota = this.of(repository);
    return quota && warning(quota, await this.#deps.namespaces.usedBytes(quota.namespace));
  }

  /** What a write may add. @param id the upload that ends with it, and counts no more from then on */
  allowance(repository: RepositoryName, id: string | symbol | undefined): Allowance | undefined {
    const quota = this.of(repository);
    if (!quota) return undefined;
    const grown: Allowance["grown"] = (beforeBytes, afterBytes) => {
      // Now, not once the disk has it: until then it would count twice.
      if (id !== undefined) this.#underWay.delete(id);
      if (warning(quota, beforeBytes) !== undefined || warning(quota, afterBytes) === undefined) return;
      const facts = { namespace: quota.namespace, bytes: afterBytes, quota: quota.maxBytes };
      this.#deps.log.warn(facts, "a namespace is nearly full");
    };
    return { ...quota, grown };
  }

  /**
   * Runs the work of a request that brings bytes.
   * @param id of its upload
   * @param work takes the body from its argument; that is cut where more comes than is left
   * @throws QuotaExceeded; whatever `work` throws. The upload then counts no more
   */
  async taking<T, Body extends AsyncIterable<Buffer> | undefined>(
    repository: RepositoryName,
    id: string | symbol,
    asked: Asked,
    body: Body,
    work: (body: Body | AsyncIterable<Buffer>) => Promise<T>,
  ): Promise<T> {
    const quota = this.of(repository);
    if (!quota) return work(body);
    let upload: UnderWay | undefined;
    try {
      upload = await this.#admit(quota, id, asked);
      const unknown = upload && body && asked.comingBytes === undefined;
      const result = await work(unknown ? this.#metered(quota, upload as UnderWay, body) : body);
      if (upload) upload.restsSinceMs = this.#deps.clock.now();
      return result;
    } catch (error) {
      // Another request may have taken the upload over.
      if (!upload || this.#underWay.get(id) === upload) this.#underWay.delete(id);
      throw error;
    }
  }

  /** Brings the gauges of what is stored here up to date. Of namespaces with a quota the largest are named. */
  async expose(metrics: Metrics): Promise<void> {
    const found = await this.#deps.namespaces.bytes();
    metrics.blobsBytes.set(
      { kind: "hosted" },
      found.reduce((sum, { bytes }) => sum + bytes, 0),
    );
    metrics.namespaceBytes.reset();
    metrics.quotaBytes.reset();
    let named = 0;
    for (const { namespace, bytes } of found) {
      const quota = this.ofNamespace(namespace);
      if (!quota) continue;
      if (named++ >= MOST_NAMED) return;
      metrics.namespaceBytes.set({ namespace }, bytes);
      metrics.quotaBytes.set({ namespace }, quota.maxBytes);
    }
  }

  /** The upload has ended. */
  forget(id: string | symbol): void {
    this.#underWay.delete(id);
  }

  /** @returns undefined where it costs nothing */
  async #admit(
    quota: Quota,
    id: string | symbol,
    { digest, hereBytes, comingBytes }: Asked,
  ): Promise<UnderWay | undefined> {
    const { namespaces } = this.#deps;
    const { namespace } = quota;
    if (digest !== undefined && (await namespaces.holds(namespace, digest))) return undefined;
    const usedBytes = await namespaces.usedBytes(namespace);
    // No wait from here: two that ask at once see each other.
    const upload = { namespace, digest, bytes: hereBytes + (comingBytes ?? 0), restsSinceMs: undefined };
    this.#underWay.set(id, upload);
    checkFits(this.#standing(quota, usedBytes, upload), upload.bytes);
    return upload;
  }

  async *#metered(
    quota: Quota,
    upload: UnderWay,
    body: AsyncIterable<Buffer>,
  ): AsyncGenerator<Buffer, void, undefined> {
    let grantedBytes = upload.bytes;
    for await (const chunk of body) {
      upload.bytes += chunk.length;
      if (upload.bytes > grantedBytes) {
        const usedBytes = await this.#deps.namespaces.usedBytes(quota.namespace);
        const standing = this.#standing(quota, usedBytes, upload);
        checkFits(standing, upload.bytes);
        grantedBytes = Math.min(upload.bytes + STEP_BYTES, leftBytes(standing));
      }
      yield chunk;
    }
  }

  #standing(quota: Quota, usedBytes: Bytes, self: UnderWay): Standing {
    const nowMs = this.#deps.clock.now();
    const seen = new Set([self.digest]);
    let underWayBytes = 0;
    for (const [id, other] of this.#underWay) {
      if (other.restsSinceMs !== undefined && nowMs - other.restsSinceMs >= REST_MS) this.#underWay.delete(id);
      else if (other !== self && other.namespace === quota.namespace) {
        // The same content is sent by several at once, and counts once.
        if (other.digest !== undefined && seen.has(other.digest)) continue;
        seen.add(other.digest);
        underWayBytes += other.bytes;
      }
    }
    return { ...quota, usedBytes, underWayBytes };
  }
}
