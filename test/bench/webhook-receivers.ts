/** Endpoints of webhooks, in a process of their own: takes a `ReceiverTask`. */
import { createServer as createHttpServer } from "node:http";
import { createServer as createSilentServer, type AddressInfo, type Server } from "node:net";

export type ReceiverTask =
  /** Answers with `Ports`. */
  | { kind: "listen" }
  /** Answers with the number of events that were taken so far, over all endpoints. */
  | { kind: "taken" };

export interface Ports {
  /** Takes everything. */
  alive: number;
  /** Takes connections, and never says anything. */
  silent: number;
}

let taken = 0;

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return (server.address() as AddressInfo).port;
}

async function perform(task: ReceiverTask): Promise<Ports | number> {
  if (task.kind === "taken") return taken;
  const alive = createHttpServer((request, response) => {
    const pieces: Buffer[] = [];
    request.on("data", (piece: Buffer) => pieces.push(piece));
    request.on("end", () => {
      // Not parsed: what the receivers do is not what is measured, and they share the machine.
      taken += Buffer.concat(pieces).toString("latin1").split('"mediaType":').length - 1;
      response.writeHead(204).end();
    });
  });
  return { alive: await listen(alive), silent: await listen(createSilentServer(() => undefined)) };
}

process.on("message", (task: ReceiverTask) => {
  perform(task).then(
    (result) => process.send?.({ result }),
    (error: unknown) => process.send?.({ error: (error as Error).message }),
  );
});
process.once("disconnect", () => process.exit());
