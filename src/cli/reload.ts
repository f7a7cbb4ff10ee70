import { watch, type FSWatcher } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { App } from "../app.ts";
import type { Logger } from "../base/log.ts";
import { ConfigError } from "../config/faults.ts";
import { loadConfig } from "../config/load.ts";

export interface ReloadOptions {
  app: App;
  /** Undefined: the configuration comes from the environment alone. */
  file: string | undefined;
  /** What the file held just before it was loaded: whatever differs from it is a change. */
  text: string | undefined;
  env: NodeJS.ProcessEnv;
  log: Logger;
}

/** @returns undefined for a file that can't be read: that is a change, too */
export function readConfigText(file: string): Promise<string | undefined> {
  return readFile(file, "utf8").catch(() => undefined);
}

/** An editor writes in several steps, and a Kubernetes ConfigMap changes by several renames. */
const SETTLE_MS = 250;

/**
 * Reloads the configuration when asked to and when its file changes, one after the other. A faulty one changes nothing and is reported
 * with all its faults; of a good one, what can change does, and what needs a restart is named.
 */
export class Reloading implements AsyncDisposable {
  readonly #options: ReloadOptions;
  #watcher: FSWatcher | undefined;
  #settling: NodeJS.Timeout | undefined;
  #text: string | undefined;
  #turn: Promise<void> = Promise.resolve();

  constructor(options: ReloadOptions) {
    this.#options = options;
    const { file, text, log } = options;
    this.#text = text;
    if (file === undefined) return;
    try {
      // The folder: a file that is replaced by a rename is another file.
      this.#watcher = watch(dirname(file), { persistent: false }, () => this.#settle(file));
      this.#watcher.on("error", (error) =>
        log.warn({ file, err: error }, "the configuration file is no longer watched"),
      );
    } catch (error) {
      log.warn({ file, err: error }, "the configuration file can't be watched: send SIGHUP after a change");
    }
    // It may have changed while the daemon started.
    this.#settle(file);
  }

  /** Loads the configuration again, whether its file changed or not (a password file may have). */
  reload(reason: "SIGHUP" | "changed file"): void {
    this.#turn = this.#turn.then(() => this.#reload(reason));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#watcher?.close();
    clearTimeout(this.#settling);
    await this.#turn;
  }

  #settle(file: string): void {
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => {
      this.#turn = this.#turn.then(async () => {
        const text = await readConfigText(file);
        if (text === this.#text) return;
        this.#text = text;
        await this.#reload("changed file");
      });
    }, SETTLE_MS);
  }

  async #reload(reason: string): Promise<void> {
    const { app, file, env, log } = this.#options;
    try {
      const { config, origins, warnings } = await loadConfig({ file, env });
      for (const warning of warnings) log.warn(warning);
      const { changed, needRestart } = app.reload(config, origins);
      log.info({ reason, changed }, "configuration reloaded");
      if (needRestart.length > 0) log.warn({ needRestart }, "these settings change with a restart only");
    } catch (error) {
      const facts = error instanceof ConfigError ? { faults: error.faults } : { err: error };
      log.error({ reason, ...facts }, "the configuration can't be used, nothing changes");
    }
  }
}
