import { z } from "zod";
import type { Logger } from "../base/log.ts";
import { Attended } from "../jobs/attended.ts";
import type { JobQueue } from "../jobs/queue.ts";
import type { JobRunner } from "../jobs/runner.ts";
import { isRepositoryName, type RepositoryName } from "../oci/reference.ts";
import { Importer, type ImportDeps, type ImportEvent, type ImportOptions, type ImportReport } from "./import.ts";

export type ImportJob = Attended<ImportOptions, ImportEvent, ImportReport>;

const payload = z.object({
  path: z.string(),
  into: z
    .string()
    .refine((text): text is RepositoryName => isRepositoryName(text))
    .optional(),
  overwrite: z.boolean(),
  deferVerification: z.boolean(),
  dryRun: z.boolean(),
});

/** Imports as a job: stopped with the daemon, one begins anew when that is back, and skips what is here. */
export function importJob({
  queue,
  runner,
  log,
  ...deps
}: ImportDeps & { queue: JobQueue; runner: JobRunner; log: Logger }): ImportJob {
  const importer = new Importer(deps);
  return new Attended({
    queue,
    runner,
    title: "an import",
    kind: {
      kind: "import",
      parse: (stored): ImportOptions => {
        const { into, ...options } = payload.parse(stored);
        return { ...options, into };
      },
      run: (options, context) => {
        const tell = (event: ImportEvent): Promise<void> => {
          if (event.type === "progress") return context.progress(event);
          context.line(textOf(event));
          return context.tell(event);
        };
        return importer.run(options, tell, context.signal);
      },
      ended: ({ path, dryRun }, outcome) => {
        if (outcome.how === "done" && !dryRun) log.info({ path, ...outcome.result }, "imported");
      },
    },
  });
}

/** What was left out, or was not served any more, in a line. */
export function textOf(event: Exclude<ImportEvent, { type: "progress" }>): string {
  if (event.type === "unserved") return `${event.where}: ${event.reason}`;
  const { kind, name, tag, digest, reason } = event;
  if (kind === "other") return `${name}: ${reason}`;
  const of = name === "" ? "" : ` of ${name}`;
  if (kind === "repository") return `repository ${name || "without a name"}: ${reason}`;
  return `${kind} ${kind === "tag" ? tag : digest}${of}: ${reason}`;
}
