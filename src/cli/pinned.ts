import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import type { TLSSocket } from "node:tls";
import { buildConnector } from "undici";

/**
 * Connects over TLS to whoever holds the key of exactly this certificate, whatever name it is for, whoever has signed it and however old it is:
 * the daemon of this machine, whose certificate names what others call it.
 * @param file PEM; of a chain, the first counts
 * @returns for an Agent's `connect` @throws Error naming the file where it can't be read
 */
export function pinnedTo(file: string, timeout: number): buildConnector.connector {
  const { fingerprint256 } = read(file);
  // Not authorities, but the certificate itself is checked, on every connection: a session that goes on has none to show.
  const connect = buildConnector({ timeout, rejectUnauthorized: false, maxCachedSessions: 0, allowH2: false });
  return (options, callback) =>
    connect(options, (error, socket) => {
      if (error) return callback(error, null);
      const shown = (socket as TLSSocket).getPeerX509Certificate?.();
      if (shown?.fingerprint256 === fingerprint256) return callback(null, socket);
      socket.destroy();
      callback(
        new Error(
          `it shows another certificate than the one in ${file}: has it been replaced within these seconds, or was it refused?`,
        ),
        null,
      );
    });
}

function read(file: string): X509Certificate {
  try {
    return new X509Certificate(readFileSync(file));
  } catch (cause) {
    throw new Error(`cannot read server.tls.certificate ${file} (${(cause as Error).message})`, { cause });
  }
}
