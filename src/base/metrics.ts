import { Counter, Gauge, Histogram, Registry } from "prom-client";

const LATENCY_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

/** How a pull was answered. Source: docs/operations.md, "Metrics" */
export type CacheResult = "hit" | "miss" | "joined" | "stale" | "revalidated" | "negative" | "bypass";
export type CacheKind = "manifest" | "blob" | "tags" | "referrers";

/**
 * Every metric of the daemon: the only place where one is named. Labels are bounded: an upstream is one, a repository never.
 * Gauges of state that others own (free space, cached bytes) are read by `onScrape` callbacks.
 */
export class Metrics {
  readonly registry = new Registry();
  readonly #onScrape: (() => void | Promise<void>)[] = [];

  readonly httpRequests = this.#counter("http_requests_total", "HTTP requests answered", ["handler", "method", "code"]);
  readonly httpDuration = this.#histogram(
    "http_request_duration_seconds",
    "From the request's head to the answer's last byte",
    ["handler", "method"],
  );
  readonly httpInFlight = this.#gauge("http_requests_in_flight", "HTTP requests being answered", []);
  readonly tlsCertificateExpires = this.#gauge("tls_certificate_expires_seconds", "When it expires, Unix time", [
    "file",
  ]);
  readonly buildInfo = this.#gauge("build_info", "Always 1; the version is in the labels", ["version", "node"]);

  readonly tokensIssued = this.#counter("tokens_issued_total", "Requests for a token by outcome", ["result"]);

  readonly cacheRequests = this.#counter("cache_requests_total", "Pulls of cached repositories by outcome", [
    "upstream",
    "kind",
    "result",
  ]);
  readonly cacheServedBytes = this.#counter(
    "cache_served_bytes_total",
    "Bytes of blobs and manifests sent to clients",
    ["upstream", "source"],
  );
  readonly cacheMaxBytes = this.#gauge("cache_max_bytes", "storage.cacheMaxSize: beyond it, cached content goes", []);
  readonly cacheBytes = this.#gauge("cache_bytes", "Bytes of cached blobs and manifests", ["upstream"]);
  readonly cacheEvictions = this.#counter("cache_evictions_total", "Cached contents removed", ["reason"]);
  readonly cacheErrors = this.#counter(
    "cache_errors_total",
    "Failures of the cache itself, none of which failed a pull",
    ["operation"],
  );
  readonly digestMismatches = this.#counter(
    "digest_mismatches_total",
    "Bodies from upstream that were not what their digest says",
    ["upstream"],
  );
  readonly flights = this.#gauge("flights_in_progress", "Downloads from upstream under way", []);
  readonly uploads = this.#gauge("uploads_in_progress", "Uploads that clients have begun and not ended", []);

  readonly upstreamRequests = this.#counter("upstream_requests_total", "Requests sent to an upstream", [
    "upstream",
    "kind",
    "code",
  ]);
  readonly upstreamDuration = this.#histogram(
    "upstream_request_duration_seconds",
    "From the request to the head of the answer",
    ["upstream", "kind"],
  );
  readonly upstreamReceivedBytes = this.#counter(
    "upstream_received_bytes_total",
    "Body bytes received from an upstream",
    ["upstream"],
  );
  readonly upstreamUp = this.#gauge(
    "upstream_up",
    "1 while the upstream answers, 0 while its circuit breaker is open",
    ["upstream"],
  );
  readonly upstreamRateLimit = this.#gauge(
    "upstream_ratelimit_limit",
    "Requests that the upstream grants in a window",
    ["upstream"],
  );
  readonly upstreamRateRemaining = this.#gauge("upstream_ratelimit_remaining", "Requests left in the window", [
    "upstream",
  ]);

  readonly blobsBytes = this.#gauge("blobs_bytes", "Bytes stored", ["kind"]);
  readonly namespaceBytes = this.#gauge(
    "namespace_bytes",
    "Bytes that a namespace with a quota holds, each content once",
    ["namespace"],
  );
  readonly quotaBytes = this.#gauge("quota_bytes", "Bytes that the namespace may hold", ["namespace"]);
  readonly storageFreeBytes = this.#gauge("storage_free_bytes", "Free bytes of the file system under storage.root", []);

  readonly jobs = this.#gauge("jobs", "Jobs that wait, run or have failed for the last time", ["kind", "state"]);
  readonly jobRuns = this.#counter("job_runs_total", "Runs of jobs that ended", ["kind", "result"]);
  readonly gcRuns = this.#counter("gc_runs_total", "Garbage collections that ended", ["result"]);
  readonly gcReclaimedBytes = this.#counter("gc_reclaimed_bytes_total", "Bytes of manifests and blobs removed", []);
  readonly gcDuration = this.#gauge("gc_duration_seconds", "How long the last garbage collection took", []);
  readonly scrubRuns = this.#counter("scrub_runs_total", "Scrubs that ended", ["result"]);
  readonly scrubbedBytes = this.#counter("scrub_read_bytes_total", "Bytes that scrubs have read and proven", []);
  readonly scrubFindings = this.#counter("scrub_findings_total", "What scrubs have found to be wrong", [
    "kind",
    "repaired",
  ]);
  readonly scrubDuration = this.#gauge("scrub_duration_seconds", "How long the last scrub took", []);
  readonly retentionRuns = this.#counter("retention_runs_total", "Applications of the retention rules that ended", [
    "result",
  ]);
  readonly retentionRemovedTags = this.#counter(
    "retention_removed_tags_total",
    "Tags that no retention rule kept, and that went",
    [],
  );

  readonly replicationLag = this.#gauge(
    "replication_lag_seconds",
    "Age of the oldest change that a rule has not copied yet; 0: none",
    ["rule"],
  );
  readonly replicationLastSuccess = this.#gauge(
    "replication_last_success_timestamp_seconds",
    "When a rule's last run without a fault ended, Unix time",
    ["rule"],
  );
  readonly replicationTasks = this.#gauge(
    "replication_tasks",
    "Copies that wait, run, are paused or have failed for the last time",
    ["rule", "state"],
  );
  readonly replicationImages = this.#counter("replication_images_total", "Copies of images that ended", [
    "rule",
    "outcome",
  ]);
  readonly replicationBytes = this.#counter(
    "replication_bytes_total",
    "Bytes of copied images, by how they came to the target",
    ["rule", "how"],
  );
  readonly replicationDeletedTags = this.#counter(
    "replication_deleted_tags_total",
    "Tags that rules have deleted at their targets",
    ["rule"],
  );

  readonly eventsDropped = this.#counter(
    "events_dropped_total",
    "Pulls and refusals that came faster than they could be recorded",
    [],
  );

  readonly authAttempts = this.#counter(
    "auth_attempts_total",
    "Credentials checked in full, or refused by the brakes; what is remembered is not counted",
    ["method", "result"],
  );

  readonly webhookDeliveries = this.#counter("webhook_deliveries_total", "Batches of events posted to a webhook", [
    "endpoint",
    "result",
  ]);
  readonly webhookPending = this.#gauge("webhook_pending", "Events that a webhook has yet to be told", ["endpoint"]);

  readonly processCpu = this.#counter("process_cpu_seconds_total", "User and system time of the process", []);
  readonly processResident = this.#gauge("process_resident_memory_bytes", "Memory of the process in RAM", []);
  readonly processStart = this.#gauge("process_start_time_seconds", "When the process started, Unix time", []);
  readonly eventLoopBusy = this.#counter(
    "event_loop_busy_seconds_total",
    "Time in which the process's one thread had work; near 1 a second, every answer waits",
    [],
  );

  constructor() {
    // Not prom-client's default metrics: their timers and observers run between scrapes too (0.5 % of a core), and never end.
    this.onScrape(() => {
      const { user, system } = process.cpuUsage();
      this.processCpu.reset();
      this.processCpu.inc((user + system) / 1e6);
      this.processResident.set(process.memoryUsage.rss());
      this.processStart.set(performance.timeOrigin / 1000);
      this.eventLoopBusy.reset();
      this.eventLoopBusy.inc(performance.eventLoopUtilization().active / 1000);
    });
  }

  /** Registers a callback that brings gauges up to date before each scrape. */
  onScrape(update: () => void | Promise<void>): void {
    this.#onScrape.push(update);
  }

  /** The Prometheus text format. */
  async render(): Promise<{ contentType: string; body: string }> {
    await Promise.all(this.#onScrape.map(async (update) => update()));
    return { contentType: this.registry.contentType, body: await this.registry.metrics() };
  }

  #counter<L extends string>(name: string, help: string, labelNames: readonly L[]): Counter<L> {
    return new Counter({ name: `entrepot_${name}`, help, labelNames, registers: [this.registry] });
  }

  #gauge<L extends string>(name: string, help: string, labelNames: readonly L[]): Gauge<L> {
    return new Gauge({ name: `entrepot_${name}`, help, labelNames, registers: [this.registry] });
  }

  #histogram<L extends string>(name: string, help: string, labelNames: readonly L[]): Histogram<L> {
    return new Histogram({
      name: `entrepot_${name}`,
      help,
      labelNames,
      buckets: LATENCY_BUCKETS,
      registers: [this.registry],
    });
  }
}
