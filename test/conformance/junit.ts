/** What a run of the conformance suite counted. One case can count several assertions. */
export interface Report {
  passed: number;
  failed: number;
  skipped: number;
  /** Cases that did not pass, with the reason that the suite gives. */
  failures: NamedReason[];
  skips: NamedReason[];
}

export interface NamedReason {
  name: string;
  reason: string;
}

/**
 * Reads the suite's `junit.xml`. Anything in it that is not understood is an error: it must never count as a pass.
 * @throws Error for what is no such report
 */
export function readReport(xml: string): Report {
  const head = /<testsuite ([^>]*)>/.exec(xml)?.[1];
  if (head === undefined) throw new Error(`no report of the conformance suite: ${xml.slice(0, 200)}`);
  const count = (name: string): number => {
    const value = attribute(head, name);
    // These two are left out where they are zero.
    if (value === undefined && (name === "skipped" || name === "disabled")) return 0;
    if (value === undefined || !/^\d+$/.test(value)) throw new Error(`the report's ${name} is ${value}`);
    return Number(value);
  };
  const failed = count("failures") + count("errors");
  const skipped = count("skipped") + count("disabled");
  const failures: NamedReason[] = [];
  const skips: NamedReason[] = [];
  for (const [, attributes = "", body = ""] of xml.matchAll(/<testcase ([^>]*)>(.*?)<\/testcase>/gs)) {
    const status = attribute(attributes, "status");
    if (status === "passed") continue;
    const named = { name: attribute(attributes, "name") ?? "", reason: reasonIn(body) };
    (status === "skipped" ? skips : failures).push(named);
  }
  return { passed: count("tests") - failed - skipped, failed, skipped, failures, skips };
}

/** A failed case tells why as its output, a skipped one in its log. */
function reasonIn(body: string): string {
  const output = element(body, "system-out");
  if (output !== "") return output;
  return /: skipping test:\n\s*(.*)/.exec(element(body, "system-err"))?.[1] ?? "no reason given";
}

function element(body: string, name: string): string {
  return unescape(new RegExp(`<${name}>(.*?)</${name}>`, "s").exec(body)?.[1] ?? "").trim();
}

function attribute(attributes: string, name: string): string | undefined {
  const value = new RegExp(`(?:^| )${name}="([^"]*)"`).exec(attributes)?.[1];
  return value === undefined ? undefined : unescape(value);
}

const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

function unescape(text: string): string {
  return text.replaceAll(/&(?:#(\d+)|#x([0-9a-fA-F]+)|(\w+));/g, (whole, decimal, hex, name: string | undefined) => {
    if (decimal !== undefined) return String.fromCodePoint(Number(decimal));
    if (hex !== undefined) return String.fromCodePoint(parseInt(String(hex), 16));
    return ENTITIES[name ?? ""] ?? whole;
  });
}
