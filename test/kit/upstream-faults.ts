/** Which requests a fault is for. Requests refused for want of authorization are never counted. */
export interface Match {
  method?: "GET" | "HEAD";
  /** A part of the path (a digest, `/manifests/latest`, `/token`), or a test of the path. */
  path?: string | ((path: string) => boolean);
  /** Only the nth request that matches, 1-based. */
  nth?: number;
  /** Only the first so many that match. */
  times?: number;
}

/** What goes wrong; the fields combine, and later faults win over earlier ones. */
export interface Fault {
  /** Waits that long before the headers. */
  delayMs?: number;
  /** Destroys the connection before the headers, or after that many bytes of this answer's body. */
  cutAfter?: "request" | number;
  /** Answers this status, with `body` (JSON) if there is one, instead of what was asked for. */
  status?: number;
  body?: unknown;
  /** Answers 307 with this Location, or 302 and the like with `status`. */
  redirect?: string | ((path: string) => string);
  /** Answers 200 and the whole body to a request with a Range. */
  ignoreRange?: true;
  /** Replaces headers of the answer; undefined leaves one out. Names in lower case. */
  headers?: Record<string, string | undefined>;
  /** Flips the byte of the content at this position, 0-based. */
  corruptByte?: number;
  /** Sends so many bytes of the body only, and ends cleanly. */
  bodyBytes?: number;
  /** What Content-Length says in spite of what is sent; "none" sends chunks without one. */
  contentLength?: number | "none";
}

/** Requests wait here. */
export interface Gate {
  /** Resolves when the first request waits. */
  readonly reached: Promise<void>;
  /** Lets all that wait go on, and all that come after. */
  release(): void;
}

interface Rule {
  match: Match;
  seen: number;
}

interface FaultRule extends Rule {
  fault: Fault;
}

interface GateRule extends Rule {
  afterBytes: number | undefined;
  reach: () => void;
  released: Promise<void>;
}

/** A pause in an answer: before its headers (undefined) or after that many bytes of its body. */
export interface Pause {
  readonly afterBytes: number | undefined;
  /** Says that the request is there, and waits for the release. */
  wait(signal: AbortSignal): Promise<void>;
}

/** What the script has for one request. */
export interface Plan {
  readonly fault: Fault;
  readonly pauses: Pause[];
}

export class Faults {
  #faults: FaultRule[] = [];
  #gates: GateRule[] = [];

  add(match: Match, fault: Fault): void {
    this.#faults.push({ match, fault, seen: 0 });
  }

  hold(match: Match, afterBytes: number | undefined): Gate {
    const reached = Promise.withResolvers<void>();
    const released = Promise.withResolvers<void>();
    this.#gates.push({ match, seen: 0, afterBytes, reach: reached.resolve, released: released.promise });
    return { reached: reached.promise, release: released.resolve };
  }

  /** No more faults; gates stay until they are released. */
  clear(): void {
    this.#faults = [];
  }

  plan(method: string, path: string): Plan {
    const faults = this.#faults.filter((rule) => applies(rule, method, path)).map((rule) => rule.fault);
    const headers = Object.assign({}, ...faults.map((fault) => fault.headers)) as Record<string, string | undefined>;
    const pauses = this.#gates
      .filter((rule) => applies(rule, method, path))
      .map(({ afterBytes, reach, released }) => ({
        afterBytes,
        wait: async (signal: AbortSignal): Promise<void> => {
          reach();
          const gone = Promise.withResolvers<never>();
          signal.addEventListener("abort", () => gone.reject(signal.reason), { once: true });
          signal.throwIfAborted();
          await Promise.race([released, gone.promise]);
        },
      }));
    return { fault: Object.assign({}, ...faults, { headers }) as Fault, pauses };
  }
}

function applies(rule: Rule, method: string, path: string): boolean {
  const { match } = rule;
  if (match.method !== undefined && match.method !== method) return false;
  if (typeof match.path === "string" && !path.includes(match.path)) return false;
  if (typeof match.path === "function" && !match.path(path)) return false;
  rule.seen += 1;
  if (match.nth !== undefined) return rule.seen === match.nth;
  return match.times === undefined || rule.seen <= match.times;
}
