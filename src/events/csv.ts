/** Events as CSV. Source: RFC 4180 */
import type { StoredEvent } from "./event.ts";

const COLUMNS = [
  "id",
  "at",
  "action",
  "outcome",
  "repository",
  "subject",
  "tag",
  "digest",
  "mediaType",
  "sizeBytes",
  "actor",
  "address",
  "agent",
  "requestId",
  "detail",
] as const;

/** The line with the names of the columns, which are those of the API. */
export const CSV_HEAD = `${COLUMNS.join(",")}\r\n`;

/** What a spreadsheet may take for a formula, also in the wide forms of East Asia. Source: OWASP, "CSV Injection" */
const FORMULA = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
const QUOTED = /[",\r\n]/;

/**
 * An event as one record, its line end included; what is absent is empty. A text that a spreadsheet would take for a formula gets an
 * apostrophe before it, since clients choose some of them.
 */
export function csvOf(event: StoredEvent): string {
  const { atMs, ...rest } = event;
  const values = { ...rest, at: new Date(atMs).toISOString() };
  return `${COLUMNS.map((column) => field(values[column])).join(",")}\r\n`;
}

function field(value: string | number | undefined): string {
  if (value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return QUOTED.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
