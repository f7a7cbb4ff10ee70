import { parseImageReference } from "../oci/reference.ts";
import type { WarmEvent } from "../registry/warm.ts";
import { findDaemon, LostDaemon } from "./daemon.ts";
import { DONE, FAILED, parseOptions, runCommand, UsageError, type CommandIo } from "./io.ts";
import { Terminal } from "./terminal.ts";
import { ImageProgress } from "./warm-progress.ts";

const USAGE = `Usage: entrepot warm IMAGE… [OPTIONS]

Brings whole images into the running daemon's cache before anyone asks for them.

  IMAGE                  as docker takes it: alpine:3.20, ghcr.io/owner/app@sha256:…
  --platform OS/ARCH     only this platform, such as linux/amd64 or linux/arm/v7; may be given again (default: all)
  --server URL           the daemon: http://host:port or unix:/path (default: server.listen of the configuration)
  --config FILE          the configuration that tells where the daemon listens
  --json                 pass the daemon's events on, one JSON object a line

Exit status: 0 all images are here, 1 some are not, 2 wrong usage or configuration.
`;

const PLATFORM = /^[a-z0-9]+\/[a-z0-9_]+(?:\/[a-z0-9.]+)?$/;
const MAX_IMAGES = 1000;

/** `entrepot warm IMAGE…`: asks the running daemon to fetch images, and shows how far it is. */
export function runWarm(args: string[], io: CommandIo): Promise<number> {
  return runCommand(args, io, USAGE, async () => {
    const { values, positionals } = parseOptions(
      args,
      {
        platform: { type: "string", multiple: true, default: [] },
        server: { type: "string" },
        config: { type: "string" },
        json: { type: "boolean", default: false },
      },
      MAX_IMAGES,
    );
    const images = [...new Set(positionals)];
    if (images.length === 0) throw new UsageError("an image is missing");
    const faults = [...images.flatMap(faultOfImage), ...values.platform.flatMap(faultOfPlatform)];
    if (faults.length > 0) throw new UsageError(faults.join("\n"));
    await using daemon = await findDaemon(values, io);
    const events = await daemon.events<WarmEvent>("/api/v1/warm", { images, platforms: values.platform });
    const watch = values.json ? passOn(io) : show(io, images);
    const untold = new Set(images);
    const missing = new Set(images);
    for await (const event of events) {
      if (event.type === "done" || event.type === "failed") untold.delete(event.image);
      if (watch(event)) missing.delete((event as { image: string }).image);
    }
    if (untold.size > 0) throw new LostDaemon(daemon.address);
    return missing.size === 0 ? DONE : FAILED;
  });
}

export function faultOfImage(image: string): string[] {
  try {
    parseImageReference(image);
    return [];
  } catch (error) {
    return [`${image}: ${(error as Error).message}`];
  }
}

export function faultOfPlatform(platform: string): string[] {
  return PLATFORM.test(platform) ? [] : [`"${platform}" is no platform: write one such as linux/amd64 or linux/arm/v7`];
}

/** Told of an event; returns whether it says that an image is here. */
type Watch = (event: WarmEvent) => boolean;

function passOn(io: CommandIo): Watch {
  return (event) => {
    io.stdout.write(`${JSON.stringify(event)}\n`);
    return event.type === "done";
  };
}

function show(io: CommandIo, images: readonly string[]): Watch {
  const terminal = new Terminal(io.stdout);
  let current: ImageProgress | undefined;
  let ended = 0;
  const end = (line: string): void => {
    ended += 1;
    terminal.conclude(line);
    current = undefined;
  };
  return (event) => {
    const nowMs = performance.now();
    switch (event.type) {
      case "image":
        current = new ImageProgress(event.image, nowMs);
        break;
      case "failed":
        end(`${terminal.paint("red", "✗")} ${event.image}: ${event.message}`);
        return false;
      case "done": {
        const here = current !== undefined && current.blobs > 0;
        if (here) end(`${terminal.paint("green", "✓")} ${current?.summary(nowMs)}`);
        else end(`${terminal.paint("yellow", "!")} ${event.image}: nothing to bring`);
        return true;
      }
      default:
        current?.apply(event, nowMs);
    }
    const watched = current;
    if (watched) {
      const title = images.length === 1 ? watched.image : `${watched.image} (${ended + 1} of ${images.length})`;
      terminal.show(
        (width) => watched.block(title, width),
        () => watched.line(),
      );
    }
    return false;
  };
}
