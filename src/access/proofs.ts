import { createHmac, createSecretKey, randomBytes } from "node:crypto";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Caller } from "./principal.ts";

/** What credentials have proven, and whom they stand for as of a generation. */
export interface Proof {
  /** Looks up whom they stand for now; undefined: nobody any more. Without it, they are checked anew. */
  renew: (() => Promise<Caller | undefined>) | undefined;
  caller: Caller;
  /** Of who may log in or do what: of before the caller was looked up. */
  generation: number;
}

/** What stands for credentials in memory. */
export interface ProofName {
  readonly key: string;
  /** A token of the token service itself, which tells it from others that end alike. */
  readonly token: string | undefined;
}

interface Kept {
  proof: Proof;
  token: string | undefined;
  fromMs: Milliseconds;
  untilMs: Milliseconds;
}

const REMEMBER_MS: Milliseconds = 300_000;
const CAPACITY = 10_000;
const BEARER = "Bearer ";
/** Of ES256, in base64url. */
const SIGNATURE_CHARACTERS = 86;
/** Every other thing that is presented as Bearer is shorter. */
const TOKEN_CHARACTERS = 200;

/**
 * What was proven lately, for five minutes at most. Bounded: the oldest proof goes first.
 *
 * Passwords and secrets are known by an HMAC-SHA256 with a key of the process (3 µs): by themselves they would stay in memory, and in a core
 * dump, for minutes after they were sent. Tokens of the token service end within minutes anyway. They are known by their signature, and
 * compared as a whole: 0.3 µs, where the HMAC of 1,500 characters takes 4, and the hash of a Map as much.
 */
export class Proofs {
  readonly #clock: Pick<Clock, "now">;
  readonly #key = createSecretKey(randomBytes(32));
  readonly #kept = new Map<string, Kept>();
  /** Those of tokens: anybody may have as many tokens of nobody as they like, and would push everybody's passwords out. */
  readonly #tokens = new Map<string, Kept>();

  constructor(clock: Pick<Clock, "now">) {
    this.#clock = clock;
  }

  /** What an `Authorization` header is remembered by. */
  nameOfHeader(header: string): ProofName {
    return header.length > TOKEN_CHARACTERS && header.startsWith(BEARER)
      ? { key: header.slice(-SIGNATURE_CHARACTERS), token: header }
      : { key: this.digestOf(`header ${header}`), token: undefined };
  }

  nameOfCertificate(name: string): ProofName {
    return { key: this.digestOf(`certificate ${name}`), token: undefined };
  }

  /** Tells texts apart without telling what they are. */
  digestOf(text: string): string {
    return createHmac("sha256", this.#key).update(text).digest("base64url");
  }

  /** A clock that was set back ends it, too. */
  get(name: ProofName): Proof | undefined {
    const { key, token } = name;
    const all = this.#of(name);
    const kept = all.get(key);
    if (!kept || kept.token !== token) return undefined;
    const nowMs = this.#clock.now();
    if (nowMs >= kept.fromMs && nowMs < kept.untilMs) return kept.proof;
    all.delete(key);
    return undefined;
  }

  /** @param untilMs it ends then, if that is sooner than it would by itself */
  set(name: ProofName, proof: Proof, untilMs = Infinity): void {
    const { key, token } = name;
    const all = this.#of(name);
    const fromMs = this.#clock.now();
    all.delete(key);
    all.set(key, { proof, token, fromMs, untilMs: Math.min(untilMs, fromMs + REMEMBER_MS) });
    const [oldest] = all.keys();
    if (all.size > CAPACITY && oldest !== undefined) all.delete(oldest);
  }

  delete(name: ProofName): void {
    this.#of(name).delete(name.key);
  }

  #of({ token }: ProofName): Map<string, Kept> {
    return token === undefined ? this.#kept : this.#tokens;
  }
}
