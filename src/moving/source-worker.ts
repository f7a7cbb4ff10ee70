/** The thread of `read-source.ts`. */
import { setPriority } from "node:os";
import { parentPort, workerData } from "node:worker_threads";
import { readLayout } from "./oci-layout.ts";
import { readRegistryDirectory } from "./registry-directory.ts";
import type { SourceFolder } from "./read-source.ts";
import type { Found } from "./source.ts";

const NICE = 10;
// Linux counts a thread as a process here; elsewhere this would slow the whole daemon down.
if (process.platform === "linux") setPriority(0, NICE);

const { kind, root } = workerData as SourceFolder;
const found: Iterator<Found> = kind === "registry" ? readRegistryDirectory(root) : readLayout(root);

// One at a time, and the next only when it is asked for: what is read waits here, not in memory.
parentPort?.on("message", () => {
  const { done, value } = found.next();
  parentPort?.postMessage(done === true ? undefined : value, []);
  if (done === true) parentPort?.close();
});
