import { lstat } from "node:fs/promises";
import { createServer } from "node:net";
import { parseListen, type Config } from "../../config/schema.ts";
import { Daemon, localAddress } from "../daemon.ts";
import { fault, ok, warning, type Finding } from "./finding.ts";

/** Whether the daemon can listen where it shall, or does already. @param storageInUse whether a running entrepot has the storage */
export async function checkAddress(server: Config["server"], storageInUse: boolean): Promise<Finding> {
  const { listen } = server;
  const code = await tryToListen(listen);
  if (code === undefined) {
    return storageInUse
      ? warning(
          "address",
          `nobody listens on ${listen}, yet an entrepot has the storage`,
          "it listens elsewhere: a second one needs another storage.root",
        )
      : ok("address", `${listen} is free`);
  }
  if (code !== "EADDRINUSE") {
    return fault("address", `${listen} can't be listened on (${code})`, REMEDIES[code] ?? "set another server.listen");
  }
  const version = await versionAt(server);
  if (version === "refused") {
    const address = parseListen(listen);
    const isSocket = address && "path" in address && (await lstat(address.path)).isSocket();
    return isSocket
      ? ok("address", `${listen} is a socket that an earlier run left behind: the next start removes it`)
      : fault("address", `${listen} is a file, and no socket`, "move it away, or set another server.listen");
  }
  if (version === undefined) {
    return fault("address", `another program listens on ${listen}`, "stop it, or set another server.listen");
  }
  return storageInUse
    ? ok("address", `an entrepot ${version} answers on ${listen}`)
    : warning(
        "address",
        `an entrepot ${version} with another storage answers on ${listen}`,
        "stop it before this one starts, or set another server.listen",
      );
}

const REMEDIES: Record<string, string> = {
  EACCES: "take a port above 1023, or a folder that this user may write",
  EADDRNOTAVAIL: "this machine has no such address: set server.listen to one of its own, or to :PORT for all",
  ENOTFOUND: "the name has no address: write an address, or :PORT for all",
  ENOENT: "create the socket's folder",
};

/** @returns the error's code; undefined if that worked */
async function tryToListen(listen: string): Promise<string | undefined> {
  const address = parseListen(listen);
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  const server = createServer();
  server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
  server.once("listening", () => server.close(() => resolve(undefined)));
  if (!address || "path" in address) server.listen(address?.path);
  else server.listen({ port: address.port, ...(address.host === undefined ? {} : { host: address.host }) });
  return promise;
}

/** @returns of the entrepot that answers there; undefined if another program does, or nobody within ten seconds */
async function versionAt(server: Config["server"]): Promise<string | undefined> {
  await using daemon = new Daemon(localAddress(server));
  try {
    return await daemon.version();
  } catch (error) {
    const { code } = (error as Error).cause as NodeJS.ErrnoException;
    return code === "ECONNREFUSED" ? "refused" : undefined;
  }
}

const OPEN_FILES = 4096;

/** Every connection and every blob that is read costs an open file. */
export function checkOpenFiles(): Finding {
  const { userLimits } = process.report.getReport() as {
    userLimits?: { open_files?: { soft: number | "unlimited" } };
  };
  const limit = userLimits?.open_files?.soft ?? "unlimited";
  if (limit === "unlimited" || limit >= OPEN_FILES) return ok("open files", `the limit is ${limit}`);
  return warning(
    "open files",
    `the limit is ${limit}: a few hundred clients reach it`,
    `raise it to ${OPEN_FILES} or more: "ulimit -n", LimitNOFILE= in a systemd unit, --ulimit nofile= for a container`,
  );
}
