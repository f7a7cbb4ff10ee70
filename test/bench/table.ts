import { readFile, writeFile } from "node:fs/promises";

export type Verdict = "PASS" | "MISS" | "not judged";

/** One line of the table. */
export interface Line {
  work: string;
  entrepot: string;
  peer: string;
  result: string;
  target: string;
  verdict: Verdict;
  /** Everything measured, by what was measured, in the order of the rounds. */
  samples: Record<string, number[]>;
}

const BEGIN = "<!-- bench:begin -->";
const END = "<!-- bench:end -->";
const TITLES = ["Work", "Entrepot", "docker-registry", "Result", "Target", "Verdict"];

/** Markdown whose columns are aligned, so that it reads well on a terminal, too. */
export function renderTable(lines: readonly Line[]): string {
  const rows = lines.map(({ work, entrepot, peer, result, target, verdict }) => [
    work,
    entrepot,
    peer,
    result,
    target,
    verdict,
  ]);
  const widths = TITLES.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => (row[column] ?? "").length)),
  );
  const render = (cells: readonly string[]): string =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`;
  return [TITLES, widths.map((width) => "-".repeat(width)), ...rows].map(render).join("\n");
}

/** Puts text between the markers of a Markdown file. @throws Error where it has none */
export async function writeBetweenMarkers(file: string | URL, text: string): Promise<void> {
  const page = await readFile(file, "utf8");
  const begin = page.indexOf(BEGIN);
  const end = page.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`${String(file)} lacks the lines ${BEGIN} and ${END}`);
  await writeFile(file, `${page.slice(0, begin + BEGIN.length)}\n\n${text}\n\n${page.slice(end)}`);
}
