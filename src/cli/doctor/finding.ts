/** What one check found. */
export interface Finding {
  /** What was looked at: `storage`, `upstream docker.io`. */
  check: string;
  /** A warning is worth a look and keeps nothing from working. */
  verdict: "ok" | "warning" | "fault";
  /** How things are, in one line. */
  cause: string;
  /** What helps; with every verdict but ok. */
  remedy?: string;
}

export function ok(check: string, cause: string): Finding {
  return { check, verdict: "ok", cause };
}

export function warning(check: string, cause: string, remedy: string): Finding {
  return { check, verdict: "warning", cause, remedy };
}

export function fault(check: string, cause: string, remedy: string): Finding {
  return { check, verdict: "fault", cause, remedy };
}
