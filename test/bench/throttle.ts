/**
 * A line that is slow per connection, in a process of its own: passes TCP on to a port of this machine and lets each connection
 * bring at most so many bytes a second towards the client. Counts them, heads of answers included.
 */
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

export type ThrottleTask = { kind: "listen"; targetPort: number; bytesPerSecond: number } | { kind: "received" };

const PIECE_BYTES = 128 * 1024;
/** A timer that fires late is made up for; a connection that was idle gains no more than this. */
const SLACK_MS = 20;

let received = 0;

function listen(targetPort: number, bytesPerSecond: number): Promise<number> {
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
    const target = passOn(client, targetPort, bytesPerSecond);
    client.pipe(target);
    client.once("error", () => target.destroy());
    client.once("close", () => target.destroy());
    target.once("error", () => client.destroy());
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port));
  });
}

function passOn(client: Socket, port: number, bytesPerSecond: number): Socket {
  let freeAt = performance.now();
  const resume = (): void => {
    target.resume();
  };
  const target = connect({
    host: "127.0.0.1",
    port,
    noDelay: true,
    onread: {
      // Used again only after its bytes are written: reading stops until then.
      buffer: Buffer.allocUnsafeSlow(PIECE_BYTES),
      callback: (length, view) => {
        received += length;
        const now = performance.now();
        freeAt = Math.max(freeAt, now - SLACK_MS) + (length / bytesPerSecond) * 1000;
        const waitMs = freeAt - now;
        client.write((view as Buffer).subarray(0, length), () => {
          if (waitMs < 1) resume();
          else setTimeout(resume, waitMs);
        });
        return false;
      },
    },
  });
  target.once("end", () => client.end());
  return target;
}

process.on("message", (task: ThrottleTask) => {
  if (task.kind === "received") process.send?.({ result: received });
  else void listen(task.targetPort, task.bytesPerSecond).then((port) => process.send?.({ result: port }));
});
process.once("disconnect", () => process.exit());
