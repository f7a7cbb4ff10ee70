/**
 * A line to a far place, in a process of its own: passes TCP on to a port of this machine. Each connection takes a round trip to open, every byte
 * takes half of one, and each direction of it brings at most so many bytes a second. Counts bytes both ways, heads included, and requests.
 */
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

export interface FarLine {
  targetPort: number;
  bytesPerSecond: number;
  roundTripMs: number;
}

export type FarLineTask = ({ kind: "listen" } & FarLine) | { kind: "carried" };

export interface Carried {
  bytes: number;
  requests: number;
}

/** A timer that fires late is made up for; a connection that was idle gains no more than this. */
const SLACK_MS = 20;
/** A request without a body that its connection sends at once is one piece, and so is the head of one with a body. */
const REQUEST = /^(?:GET|HEAD|POST|PUT|PATCH|DELETE) \//;

const carried: Carried = { bytes: 0, requests: 0 };

function listen({ targetPort, bytesPerSecond, roundTripMs }: FarLine): Promise<number> {
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
    const target = connect({ host: "127.0.0.1", port: targetPort, noDelay: true, allowHalfOpen: true });
    const delayMs = roundTripMs / 2;
    const onHead = (piece: Buffer): void => {
      if (REQUEST.test(piece.toString("latin1", 0, 16))) carried.requests++;
    };
    carry(client, target, { bytesPerSecond, delayMs, openAtMs: performance.now() + roundTripMs, onPiece: onHead });
    carry(target, client, { bytesPerSecond, delayMs, openAtMs: 0, onPiece: () => undefined });
    for (const [one, other] of [
      [client, target],
      [target, client],
    ] as const) {
      one.once("error", () => other.destroy());
      one.once("close", () => other.destroy());
    }
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port));
  });
}

interface Direction {
  bytesPerSecond: number;
  delayMs: number;
  /** Before, nothing gets through: the handshake. */
  openAtMs: number;
  onPiece: (piece: Buffer) => void;
}

/** What is on its way is bounded: what the rate does not allow yet is not read. */
function carry(from: Socket, to: Socket, { bytesPerSecond, delayMs, openAtMs, onPiece }: Direction): void {
  const onTheWay: { atMs: number; piece: Buffer | undefined }[] = [];
  let freeAtMs = openAtMs;
  let timer: NodeJS.Timeout | undefined;
  const deliver = (): void => {
    timer = undefined;
    for (let next; (next = onTheWay[0]) !== undefined;) {
      const waitMs = next.atMs - performance.now();
      if (waitMs >= 1) {
        timer = setTimeout(deliver, waitMs);
        return;
      }
      onTheWay.shift();
      if (to.destroyed) return;
      if (next.piece === undefined) to.end();
      else if (!to.write(next.piece)) {
        to.once("drain", deliver);
        return;
      }
    }
  };
  const send = (piece: Buffer | undefined): void => {
    onTheWay.push({ atMs: freeAtMs + delayMs, piece });
    if (onTheWay.length === 1 && timer === undefined && !to.writableNeedDrain) deliver();
  };
  from.on("data", (piece: Buffer) => {
    carried.bytes += piece.length;
    onPiece(piece);
    const nowMs = performance.now();
    freeAtMs = Math.max(freeAtMs, nowMs - SLACK_MS) + (piece.length / bytesPerSecond) * 1000;
    send(piece);
    const aheadMs = freeAtMs - nowMs;
    const goOn = (): unknown => (to.writableNeedDrain ? to.once("drain", goOn) : from.resume());
    if (aheadMs < 1 && !to.writableNeedDrain) return;
    from.pause();
    setTimeout(goOn, Math.max(0, aheadMs));
  });
  from.once("end", () => {
    freeAtMs = Math.max(freeAtMs, performance.now());
    send(undefined);
  });
}

process.on("message", (task: FarLineTask) => {
  if (task.kind === "carried") process.send?.({ result: carried });
  else void listen(task).then((port) => process.send?.({ result: port }));
});
process.once("disconnect", () => process.exit());
