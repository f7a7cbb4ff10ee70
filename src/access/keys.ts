/**
 * The keys of the token service: an authority that lasts ten years, and signers in turn that it vouches for. Other registries trust the
 * authority, so that they need not be told of a new signer. A former signer's tokens are good until they end.
 */
import {
  createHash,
  createPrivateKey,
  generateKeyPairSync,
  X509Certificate,
  type JsonWebKey,
  type KeyObject,
} from "node:crypto";
import type { Clock, Milliseconds } from "../base/clock.ts";
import type { Config } from "../config/schema.ts";
import type { Database, Writer } from "../db/database.ts";
import { makeCertificate } from "./certificate.ts";

export interface KeysDeps {
  db: Database;
  clock: Clock;
  /** Read whenever it is needed: it can be reloaded. */
  config: () => Pick<Config["access"]["tokens"], "life" | "rotate">;
}

export interface Signer {
  /** As libtrust writes it. */
  kid: string;
  privateKey: KeyObject;
  /** Its certificate, DER in base64, as the header `x5c` has it. */
  certificate: string;
}

interface KeyRow {
  id: string;
  kind: "authority" | "signer";
  privateKey: string;
  certificate: string;
  createdAt: number;
}

interface Loaded {
  signer: Signer;
  authority: string;
  /** By kid: the signer's and those of former ones. */
  publicKeys: ReadonlyMap<string, KeyObject>;
}

const DAY_MS: Milliseconds = 86_400_000;
const YEAR_MS = 365 * DAY_MS;
const AUTHORITY_MS = 10 * YEAR_MS;
/** With so much left it is certified anew, with the same key: those who trust the older certificate have that long to fetch this one. */
const RENEWAL_MS = 2 * YEAR_MS;
/** A signer's certificate ends with the authority's: with so much left, another signer is due. */
const SIGNER_DUE_MS = YEAR_MS;
/** Other machines' clocks may be behind. */
const BACKDATED_MS = DAY_MS;
const AUTHORITY_NAME = "Entrepot token authority";
const BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/** The keys that tokens are signed and proven with; {@link open} makes them at the first start. */
export class SigningKeys {
  readonly #deps: KeysDeps;
  #loaded: Loaded;

  private constructor(deps: KeysDeps, loaded: Loaded) {
    this.#deps = deps;
    this.#loaded = loaded;
  }

  /** Makes keys where there are none, and else writes nothing: a full disk is no reason not to start. */
  static async open(deps: KeysDeps): Promise<SigningKeys> {
    const rows = await deps.db.all<KeyRow>(SELECT);
    const authority = rows.find(({ kind }) => kind === "authority");
    const signers = rows.filter(({ kind }) => kind === "signer");
    return new SigningKeys(deps, authority && signers.length > 0 ? load(authority, signers) : await renew(deps));
  }

  /** Puts another signer in the place of one that has signed for `rotate`, and forgets those whose tokens have ended. To be called at start, and daily. */
  async rotate(): Promise<void> {
    this.#loaded = await renew(this.#deps);
  }

  get signer(): Signer {
    return this.#loaded.signer;
  }

  /** @returns undefined for a key that is not ours, or not any more */
  publicKey(kid: string): KeyObject | undefined {
    return this.#loaded.publicKeys.get(kid);
  }

  /** The certificates to be trusted by those who take our tokens, in PEM. The same for years. */
  get certificates(): string {
    return this.#loaded.authority;
  }

  /** The public keys of signers as a key set. Source: RFC 7517 §5 */
  get jwks(): { keys: JsonWebKey[] } {
    const keys = [...this.#loaded.publicKeys].map(([kid, key]) => ({
      ...key.export({ format: "jwk" }),
      kid,
      alg: "ES256",
      use: "sig",
    }));
    return { keys };
  }
}

/**
 * The name of a key as libtrust writes it: the first 240 bits of SHA-256 over the public key's DER, in base32, by fours. Stock registries
 * up to version 2.8 know keys by that name only.
 * Source: docker/libtrust, util.go, keyIDEncode
 */
export function libtrustId(publicKey: KeyObject): string {
  const hash = createHash("sha256")
    .update(publicKey.export({ type: "spki", format: "der" }))
    .digest();
  const bits = BigInt(`0x${hash.subarray(0, 30).toString("hex")}`);
  const letters = Array.from({ length: 48 }, (_, index) => BASE32[Number((bits >> BigInt(235 - 5 * index)) & 31n)]);
  return letters.join("").replaceAll(/.{4}(?!$)/g, "$&:");
}

const SELECT = `
  SELECT id, kind, private_key AS privateKey, certificate, created_at AS createdAt
  FROM signing_keys ORDER BY created_at DESC, id`;

function renew({ db, clock, config }: KeysDeps): Promise<Loaded> {
  const now = clock.now();
  const { life, rotate } = config();
  return db.transaction("durable", async (tx) => {
    const rows = await tx.all<KeyRow>(SELECT);
    const formerAuthority = rows.find(({ kind }) => kind === "authority");
    const authority = await keepAuthority(tx, formerAuthority, now);
    // Without the authority that vouches for them they are no use to anybody.
    const signers = formerAuthority ? rows.filter(({ kind }) => kind === "signer") : [];
    const [newest] = signers;
    if (!newest || isDue(newest, rotate, now)) signers.unshift(await makeSigner(tx, authority, now));
    const kept = signers.filter((_, index) => {
      const successor = signers[index - 1];
      return !successor || successor.createdAt + life + DAY_MS > now;
    });
    const keptIds = new Set(kept.map(({ id }) => id));
    for (const { id, kind } of rows) {
      if (kind === "signer" && !keptIds.has(id)) await tx.run("DELETE FROM signing_keys WHERE id = :id", { id });
    }
    return load(authority, kept);
  });
}

function isDue({ createdAt, certificate }: KeyRow, rotateMs: Milliseconds, now: number): boolean {
  if (rotateMs > 0 && now - createdAt >= rotateMs) return true;
  return endOf(certificate) - now < SIGNER_DUE_MS;
}

function endOf(certificate: string): number {
  return new X509Certificate(certificate).validToDate.getTime();
}

async function keepAuthority(tx: Writer, former: KeyRow | undefined, now: number): Promise<KeyRow> {
  if (former && endOf(former.certificate) - now >= RENEWAL_MS) return former;
  const { publicKey, privateKey } = former ? keysOf(former) : generateKeyPairSync("ec", { namedCurve: "P-256" });
  const certificate = makeCertificate({
    subject: AUTHORITY_NAME,
    issuer: AUTHORITY_NAME,
    publicKey,
    issuerKey: privateKey,
    isAuthority: true,
    notBeforeMs: now - BACKDATED_MS,
    notAfterMs: now + AUTHORITY_MS,
  });
  return save(tx, { kind: "authority", publicKey, privateKey, certificate, createdAt: former?.createdAt ?? now });
}

function makeSigner(tx: Writer, authority: KeyRow, now: number): Promise<KeyRow> {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const certificate = makeCertificate({
    subject: libtrustId(publicKey),
    issuer: AUTHORITY_NAME,
    publicKey,
    issuerKey: createPrivateKey(authority.privateKey),
    isAuthority: false,
    notBeforeMs: now - BACKDATED_MS,
    notAfterMs: endOf(authority.certificate),
  });
  return save(tx, { kind: "signer", publicKey, privateKey, certificate, createdAt: now });
}

async function save(
  tx: Writer,
  {
    kind,
    publicKey,
    privateKey,
    certificate,
    createdAt,
  }: Omit<KeyRow, "id" | "privateKey"> & {
    publicKey: KeyObject;
    privateKey: KeyObject;
  },
): Promise<KeyRow> {
  const pem = privateKey.export({ type: "pkcs8", format: "pem" }) as string;
  const row: KeyRow = { id: libtrustId(publicKey), kind, privateKey: pem, certificate, createdAt };
  await tx.run(
    `INSERT INTO signing_keys (id, kind, private_key, certificate, created_at)
     VALUES (:id, :kind, :privateKey, :certificate, :createdAt)
     ON CONFLICT (id) DO UPDATE SET certificate = excluded.certificate`,
    { ...row },
  );
  return row;
}

function keysOf({ privateKey, certificate }: KeyRow): { publicKey: KeyObject; privateKey: KeyObject } {
  return { privateKey: createPrivateKey(privateKey), publicKey: new X509Certificate(certificate).publicKey };
}

function load(authority: KeyRow, signers: readonly KeyRow[]): Loaded {
  const [current] = signers;
  if (!current) throw new Error("there is no signer");
  return {
    authority: authority.certificate,
    signer: {
      kid: current.id,
      privateKey: createPrivateKey(current.privateKey),
      certificate: new X509Certificate(current.certificate).raw.toString("base64"),
    },
    publicKeys: new Map(signers.map((row) => [row.id, keysOf(row).publicKey])),
  };
}
