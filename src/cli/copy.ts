import { setTimeout as delay } from "node:timers/promises";
import type { Clock } from "../base/clock.ts";
import { createLog } from "../base/log.ts";
import { loadConfig } from "../config/load.ts";
import { isTag, type Tag } from "../oci/reference.ts";
import { createRemote, type Remote, type RemoteDependencies } from "../remote/remote.ts";
import { createTarget } from "../remote/target.ts";
import { Copier } from "../replication/copy.ts";
import type { CopyOptions, CopyProgress, CopyRequest, CopyResult } from "../replication/copy-job.ts";
import { isFallbackTag } from "../replication/copy-manifests.ts";
import { readPlace, type CopyPlace } from "./copy-place.ts";
import { bytesText, countText, timeText } from "./format.ts";
import { imageBars } from "./image-bars.ts";
import { interruptible } from "./interrupt.ts";
import { DONE, FAILED, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { jsonTeller } from "./progress.ts";
import { Terminal } from "./terminal.ts";
import { faultOfPlatform } from "./warm.ts";

const USAGE = `Usage: entrepot copy SRC DST [OPTIONS]

Copies an image, or all tags of a repository, from one registry to another, with all platforms, signatures and what else refers to it. Needs no
daemon. What the target has is not sent; what is under its other repositories is mounted. Called again after a break, it goes on.

  SRC, DST               with their host: docker.io/library/alpine:3.20, 127.0.0.1:5001/team/app; DST without a tag takes that of SRC.
                         A name of replication.registries may stand in place of a host
  --platform OS/ARCH     only this platform, such as linux/amd64 or linux/arm/v7; may be given again (default: all). The index stays as it is
  --all-tags             every tag of the repository; of a tag that has not changed, nothing that refers to it is looked for
  --existing WHAT        where a tag of DST names something else: replace, keep or fail (default: replace)
  --no-referrers         the image alone, without what refers to it
  --dry-run              only tell what there would be to do
  --src-plain-http       speak plain http to SRC, and
  --dst-plain-http       to DST, as is done with hosts on this machine
  --config FILE          the configuration whose upstreams and registries have credentials (default for others: docker's config.json)
  --json                 tell how far it is as JSON objects, one a line

Exit status: 0 all is there, 1 some images failed, 2 wrong usage or configuration.
`;

const EXISTING = ["replace", "keep", "fail"] as const;
const CONCURRENCY = 6;

/** What `--json` tells. Sizes are bytes. */
type CopyEvent =
  | { type: "progress"; images: ({ image: string } & CopyProgress)[] }
  | ({ type: "image"; image: string; target: string } & CopyResult)
  | { type: "failed"; image: string; target: string; message: string }
  | ({ type: "done" } & Totals);

interface Totals {
  copied: number;
  unchanged: number;
  kept: number;
  failed: number;
  tagsMoved: number;
  sentBytes: number;
  mountedBytes: number;
  presentBytes: number;
  /** On the wire, to both registries and for their tokens. */
  requests: number;
  ms: number;
}

/** As a command waits: the process does not end meanwhile. */
const commandClock: Clock = {
  now: () => Date.now(),
  sleep: (ms, signal) => delay(ms, undefined, signal ? { signal } : {}),
};

/** `entrepot copy SRC DST`. */
export function runCopy(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        platform: { type: "string", multiple: true, default: [] },
        "all-tags": { type: "boolean", default: false },
        existing: { type: "string", default: "replace" },
        "no-referrers": { type: "boolean", default: false },
        "dry-run": { type: "boolean", default: false },
        "src-plain-http": { type: "boolean", default: false },
        "dst-plain-http": { type: "boolean", default: false },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      2,
    );
    const [from, to] = positionals;
    if (from === undefined || to === undefined) throw new UsageError("write what is copied, then where to");
    const faults = values.platform.flatMap(faultOfPlatform);
    const existing = EXISTING.find((one) => one === values.existing);
    if (!existing) faults.push(`--existing ${values.existing} is none of ${EXISTING.join(", ")}`);
    if (faults.length > 0 || !existing) throw new UsageError(faults.join("\n"));
    const { config } = await loadConfig({ file: values.config, env: io.env });
    const read = (text: string, plainHttp: boolean): CopyPlace => {
      try {
        return readPlace(text, config, io.env, plainHttp);
      } catch (error) {
        throw error instanceof UsageError ? error : new UsageError(`${text}: ${(error as Error).message}`);
      }
    };
    const source = read(from, values["src-plain-http"]);
    const target = read(to, values["dst-plain-http"]);
    const all = values["all-tags"];
    if (all && (source.named || target.named)) throw new UsageError("--all-tags takes repositories, without a tag");
    const options: CopyOptions = {
      platforms: values.platform,
      attached: values["no-referrers"] ? "never" : all ? "whenChanged" : "always",
      existing,
      // Whoever copies by hand means what he says, whatever was pushed when.
      keepOrigin: false,
      dryRun: values["dry-run"],
      concurrency: CONCURRENCY,
    };
    return await copyAll(source, target, all, options, teller(io, values.json, values["dry-run"]));
  });
}

async function copyAll(
  source: CopyPlace,
  target: CopyPlace,
  all: boolean,
  options: CopyOptions,
  tell: (event: CopyEvent) => void,
): Promise<number> {
  const startedAtMs = performance.now();
  using interrupt = interruptible();
  const { signal } = interrupt;
  let requests = 0;
  const dependencies: RemoteDependencies = {
    clock: commandClock,
    log: await createLog({ level: "silent", format: "json" }),
    observe: { request: () => void requests++, received: () => undefined },
  };
  await using remote = await createRemote(source.endpoint, dependencies);
  await using registry = await createTarget(target.endpoint, dependencies);
  const copier = new Copier({ source: remote, target: registry, clock: commandClock, options });
  const wanted = all ? await tagsOf(remote, source, signal) : [undefined];
  const running = new Map<string, CopyProgress>();
  const totals = {
    copied: 0,
    unchanged: 0,
    kept: 0,
    failed: 0,
    tagsMoved: 0,
    sentBytes: 0,
    mountedBytes: 0,
    presentBytes: 0,
  };
  const copyOne = async (tag: Tag | undefined): Promise<void> => {
    const request = requestOf(source, target, tag);
    const names = { image: nameOf(source, request.from), target: nameOf(target, request.to) };
    try {
      const result = await copier.copy(request, signal, (progress) => {
        running.set(names.image, progress);
        tell({
          type: "progress",
          images: [...running].map(([image, { totalBytes, doneBytes }]) => ({ image, totalBytes, doneBytes })),
        });
      });
      running.delete(names.image);
      totals[result.outcome] += 1;
      totals.tagsMoved += result.tagsMoved.length;
      for (const key of ["sentBytes", "mountedBytes", "presentBytes"] as const) totals[key] += result[key];
      tell({ type: "image", ...names, ...result });
    } catch (error) {
      running.delete(names.image);
      totals.failed += 1;
      if (!signal.aborted) tell({ type: "failed", ...names, message: (error as Error).message });
    }
  };
  await Promise.all(wanted.map(copyOne));
  signal.throwIfAborted();
  tell({ type: "done", ...totals, requests, ms: Math.round(performance.now() - startedAtMs) });
  return totals.failed === 0 ? DONE : FAILED;
}

/** @throws Error where there is no such repository */
async function tagsOf(remote: Remote, { host, repository }: CopyPlace, signal: AbortSignal): Promise<Tag[]> {
  const tags = await remote.listTags(repository, { signal });
  if (!tags) throw new Error(`${host}/${repository} does not exist`);
  return tags.filter((tag): tag is Tag => isTag(tag) && !isFallbackTag(tag));
}

function requestOf(source: CopyPlace, target: CopyPlace, tag: Tag | undefined): CopyRequest {
  const reference = tag ?? source.reference;
  return {
    from: { repository: source.repository, reference },
    to: { repository: target.repository, reference: target.named ? target.reference : reference },
  };
}

function nameOf({ host }: CopyPlace, { repository, reference }: CopyRequest["from"]): string {
  return `${host}/${repository}${isTag(reference) ? ":" : "@"}${reference}`;
}

function teller(io: CommandIo, json: boolean, dryRun: boolean): (event: CopyEvent) => void {
  if (json) return jsonTeller(io.stdout);
  const terminal = new Terminal(io.stdout);
  return (event) => {
    if (event.type === "progress") {
      terminal.show(
        (width, height) =>
          imageBars(
            event.images.map(({ image, ...progress }) => ({ name: image, ...progress })),
            width,
            height,
          ),
        () => event.images.map(({ image, ...progress }) => `${image}: ${amountText(progress)}`).join("; "),
      );
    } else if (event.type === "failed") {
      terminal.conclude(`${terminal.paint("red", "✗")} ${event.image}: ${event.message}`);
    } else if (event.type === "image") {
      for (const note of event.notes) terminal.conclude(`${terminal.paint("yellow", "!")} ${note}`);
      terminal.conclude(`${terminal.paint("green", "✓")} ${event.target}: ${outcomeText(event, dryRun)}`);
    } else terminal.conclude(totalText(event, dryRun));
  };
}

function amountText({ doneBytes, totalBytes }: CopyProgress): string {
  return `${bytesText(doneBytes)} of ${bytesText(totalBytes)}`;
}

function outcomeText(result: CopyResult, dryRun: boolean): string {
  if (result.outcome !== "copied") return result.outcome;
  const parts = [
    `${bytesText(result.sentBytes)} ${dryRun ? "to send" : "sent"}`,
    ...(result.mountedBytes > 0 ? [`${bytesText(result.mountedBytes)} ${dryRun ? "to mount" : "mounted"}`] : []),
    ...(result.presentBytes > 0 ? [`${bytesText(result.presentBytes)} there already`] : []),
  ];
  return `${dryRun ? "would be copied" : "copied"}, ${parts.join(", ")}`;
}

function totalText(totals: Totals, dryRun: boolean): string {
  const { copied, unchanged, kept, failed, requests, ms } = totals;
  const counts = [
    `${countText(copied, "image")} ${dryRun ? "to copy" : "copied"}`,
    ...(unchanged > 0 ? [`${unchanged} unchanged`] : []),
    ...(kept > 0 ? [`${kept} kept`] : []),
    ...(failed > 0 ? [`${failed} failed`] : []),
  ];
  return `${counts.join(", ")}: ${bytesText(totals.sentBytes)} ${dryRun ? "to send" : "sent"}, ${bytesText(totals.mountedBytes + totals.presentBytes)} saved, ${countText(requests, "request")}, ${timeText(ms)}`;
}
