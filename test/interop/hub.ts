import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { makeSamples, type Sample } from "./samples.ts";
import { startDaemon } from "./machine.ts";
import { copyIn } from "./skopeo.ts";

/** A real registry with two images in it: `library/interop-single:v1` and, for two platforms, `library/interop-multi:v1`. */
export interface Hub extends AsyncDisposable {
  readonly url: string;
  readonly single: Sample;
  readonly multi: Sample;
  /** Copies an image into it with skopeo, every platform of it. @param options of `skopeo copy` */
  push(source: string, name: string, options?: readonly string[]): Promise<void>;
  /** Nobody answers at its address any more. */
  stop(): Promise<void>;
}

/** Starts docker-registry with its content under `folder`. */
export async function startHub(folder: string): Promise<Hub> {
  await using stack = new AsyncDisposableStack();
  const root = join(folder, "hub");
  await mkdir(root);
  const config = join(folder, "hub.yaml");
  await writeFile(
    config,
    JSON.stringify({
      version: "0.1",
      storage: { filesystem: { rootdirectory: root }, delete: { enabled: true } },
      http: { addr: "127.0.0.1:0" },
    }),
  );
  const { daemon, match } = await startDaemon("docker-registry", ["serve", config], /listening on (127[.0-9]+:\d+)/);
  stack.use(daemon);
  const host = match[1] ?? "";
  const push: Hub["push"] = (source, name, options) => copyIn(source, `${host}/${name}`, options);
  const { single, multi } = await makeSamples(folder);
  await push(single.source, "library/interop-single:v1");
  await push(multi.source, "library/interop-multi:v1");
  const owned = stack.move();
  return {
    url: `http://${host}`,
    single,
    multi,
    push,
    stop: async () => void (await daemon.stop()),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
