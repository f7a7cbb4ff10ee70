/** Whoever guesses passwords, in a process of its own: takes a `GuessTask`, answers with how often each status was answered. */
import { request } from "node:http";
import { setPriority } from "node:os";

// They would have machines of their own.
setPriority(19);

export interface GuessTask {
  /** The server is on 127.0.0.1. */
  port: number;
  perSecond: number;
  /** They come from so many addresses in turn, of 127.1.0.0/16. */
  addresses: number;
  ms: number;
}

export type Guessed = Record<string, number>;

async function guess({ port, perSecond, addresses, ms }: GuessTask): Promise<Guessed> {
  const statuses: Guessed = {};
  const sent: Promise<void>[] = [];
  const startedAt = performance.now();
  while (performance.now() - startedAt < ms) {
    const due = ((performance.now() - startedAt) * perSecond) / 1000;
    while (sent.length < due) {
      sent.push(
        guessOnce(port, sent.length, addresses).then((status) => {
          statuses[status] = (statuses[status] ?? 0) + 1;
        }),
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  await Promise.all(sent);
  return statuses;
}

/** Every try of another account with another password, on a connection of its own. */
function guessOnce(port: number, nth: number, addresses: number): Promise<number> {
  const address = nth % addresses;
  const credentials = Buffer.from(`user${process.pid}-${nth}:guess ${nth}`).toString("base64");
  return new Promise((resolve, reject) => {
    const sent = request({
      host: "127.0.0.1",
      port,
      path: "/v2/",
      localAddress: `127.1.${address >> 8}.${address & 255}`,
      agent: false,
      headers: { authorization: `Basic ${credentials}` },
    });
    sent.once("error", reject);
    sent.once("response", (response) => {
      response.resume();
      response.once("end", () => resolve(response.statusCode ?? 0));
    });
    sent.end();
  });
}

process.on("message", (task: GuessTask) => {
  guess(task).then(
    (result) => process.send?.({ result }),
    (error: unknown) => process.send?.({ error: (error as Error).message }),
  );
});
process.once("disconnect", () => process.exit());
