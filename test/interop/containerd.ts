import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { run, startDaemon } from "./machine.ts";

/** A containerd of its own. */
export interface Containerd extends AsyncDisposable {
  /** Runs `ctr ARGS…` against it. @returns its standard output */
  ctr(...args: string[]): Promise<string>;
  /** @returns the digest of an image that it has */
  digestOf(image: string): Promise<string>;
  /** Removes images, and waits until their content is gone, too. */
  forget(...images: string[]): Promise<void>;
}

/** Starts containerd with everything that it has under `folder`. */
export async function startContainerd(folder: string): Promise<Containerd> {
  const config = join(folder, "containerd.toml");
  const socket = join(folder, "containerd.sock");
  await writeFile(
    config,
    `version = 2
root = "${folder}/containerd"
state = "${folder}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "${socket}"
[ttrpc]
  address = "${socket}.ttrpc"
`,
  );
  const { daemon } = await startDaemon("containerd", ["--config", config], /containerd successfully booted/);
  const ctr = (...args: string[]): Promise<string> => run("ctr", ["--address", socket, ...args]);
  return {
    ctr,
    digestOf: async (image) => {
      const listed = await ctr("images", "list", `name==${image}`);
      return /sha256:[0-9a-f]{64}/.exec(listed)?.[0] ?? "no digest";
    },
    forget: async (...images) => {
      // --sync waits for the collection of the content, too.
      await ctr("images", "remove", "--sync", ...images);
      const left = await ctr("content", "list", "--quiet");
      if (left.trim() !== "") throw new Error(`containerd kept ${left}`);
    },
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}
