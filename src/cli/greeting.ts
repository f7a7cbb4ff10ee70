import { hostname } from "node:os";
import { parseListen } from "../config/schema.ts";

/**
 * What `serve` says on a terminal: where it listens, and how docker gets there.
 * @param address as the server tells it, `http://0.0.0.0:5000` or `unix:/path`
 */
export function greeting(address: string, publicUrl: string | undefined, version: string): string {
  const origin = publicUrl ?? originOf(address);
  const lines = [`Entrepot ${version} listens on ${address}`];
  if (origin !== undefined) {
    lines.push(
      `  Mirror Docker Hub: put {"registry-mirrors": ["${origin}"]} into /etc/docker/daemon.json and restart docker.`,
      `  Try it at once:    docker pull ${origin.replace(/^https?:\/\//, "")}/docker.io/library/alpine`,
    );
  }
  return `${lines.join("\n")}\n`;
}

function originOf(address: string): string | undefined {
  const listen = parseListen(address.replace(/^https?:\/\//, ""));
  if (!listen || "path" in listen) return undefined;
  const everywhere = listen.host === "0.0.0.0" || listen.host === "::";
  return everywhere ? `${address.slice(0, address.indexOf("://"))}://${hostname()}:${listen.port}` : address;
}
