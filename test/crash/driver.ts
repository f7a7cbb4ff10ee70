/**
 * Kills the daemon again and again under load, and looks after each time whether it kept what it had acknowledged:
 * `npm run crash -- [--rounds N] [--seed TEXT]`. Random choices follow from the seed, which is printed; which request the kill
 * meets does not, so that a seed repeats the kind of a round, not each of its moments.
 * Exit status: 0 every round holds, 1 one does not (its storage is kept), 2 wrong usage.
 */
import { randomBytes } from "node:crypto";
import { inspect, parseArgs } from "node:util";
import { Random } from "./random.ts";
import { Victim } from "./rounds.ts";

const USAGE = `Usage: npm run crash -- [--rounds N] [--seed TEXT]

  --rounds N   so many rounds (50)
  --seed TEXT  as an earlier run printed it
`;

/** A fresh storage after so many rounds: what it holds and what is checked grow. */
const GENERATION = 25;

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: { rounds: { type: "string", default: "50" }, seed: { type: "string" }, help: { type: "boolean" } },
  });
  if (values.help === true) {
    process.stdout.write(USAGE);
    return 0;
  }
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) {
    process.stderr.write(`--rounds ${values.rounds} is no whole number of rounds\n\n${USAGE}`);
    return 2;
  }
  const seed = values.seed ?? randomBytes(4).toString("hex");
  process.stdout.write(`seed ${seed}, ${rounds} rounds\n`);
  for (let first = 1; first <= rounds; first += GENERATION) {
    const victim = await Victim.make(`${seed}/${first}`);
    for (let number = first; number < first + GENERATION && number <= rounds; number++) {
      try {
        process.stdout.write(`${number}. ${await victim.round(new Random(`${seed}/round/${number}`))}\n`);
      } catch (error) {
        const again = `npm run crash -- --seed ${seed} --rounds ${number}`;
        process.stdout.write(
          [
            `round ${number} does not hold:`,
            inspect(error),
            ...victim.faults,
            `storage: ${victim.folder}`,
            `again: ${again}`,
            "",
          ].join("\n"),
        );
        return 1;
      }
    }
    await victim[Symbol.asyncDispose]();
  }
  process.stdout.write(`${rounds} rounds hold\n`);
  return 0;
}

process.exitCode = await main();
