/**
 * X.509 certificates for keys on the curve P-256: an authority of one's own, and what it vouches for. Source: RFC 5280 §4, X.690 (DER).
 * Written by hand because it is one fixed shape: the library for it loads for a tenth of a second, with a polyfill of a global.
 */
import { createHash, createPublicKey, randomBytes, sign, type KeyObject } from "node:crypto";

export interface CertificateRequest {
  /** Common names. */
  subject: string;
  issuer: string;
  publicKey: KeyObject;
  /** The issuer's private key; the subject's own where it vouches for itself. */
  issuerKey: KeyObject;
  /** Whether it may vouch for others, or else sign anything but certificates. */
  isAuthority: boolean;
  notBeforeMs: number;
  notAfterMs: number;
}

const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bits: 0x03,
  octets: 0x04,
  oid: 0x06,
  utf8: 0x0c,
  utcTime: 0x17,
  time: 0x18,
  sequence: 0x30,
  set: 0x31,
  /** Of an authority's key identifier: implicit. */
  keyId: 0x80,
  version: 0xa0,
  extensions: 0xa3,
} as const;

// 1.2.840.10045.4.3.2
const ECDSA_SHA256 = der("sequence", der("oid", Buffer.from("2a8648ce3d040302", "hex")));
const COMMON_NAME = der("oid", Buffer.from("550403", "hex"));
/** The last number of 2.5.29.x. */
const EXTENSION = { subjectKeyId: 14, keyUsage: 15, basicConstraints: 19, authorityKeyId: 35 } as const;
const TRUE = der("boolean", Buffer.from([0xff]));
/** The first byte tells how many of the last bits are unused. */
const USE_CERTIFICATES = der("bits", Buffer.from([2, 0x04]));
const USE_SIGNATURES = der("bits", Buffer.from([7, 0x80]));
const YEAR_2050_MS = Date.UTC(2050);

/** Makes a certificate. @returns PEM */
export function makeCertificate(request: CertificateRequest): string {
  const { subject, issuer, publicKey, issuerKey, isAuthority, notBeforeMs, notAfterMs } = request;
  const body = der(
    "sequence",
    der("version", der("integer", Buffer.from([2]))),
    der("integer", serial()),
    ECDSA_SHA256,
    commonName(issuer),
    der("sequence", time(notBeforeMs), time(notAfterMs)),
    commonName(subject),
    publicKey.export({ type: "spki", format: "der" }),
    der(
      "extensions",
      der(
        "sequence",
        extension("basicConstraints", "critical", der("sequence", ...(isAuthority ? [TRUE, integer0()] : []))),
        extension("keyUsage", "critical", isAuthority ? USE_CERTIFICATES : USE_SIGNATURES),
        extension("subjectKeyId", "informative", der("octets", keyId(publicKey))),
        extension("authorityKeyId", "informative", der("sequence", der("keyId", keyId(createPublicKey(issuerKey))))),
      ),
    ),
  );
  const signature = sign("sha256", body, issuerKey);
  const certificate = der("sequence", body, ECDSA_SHA256, der("bits", Buffer.from([0]), signature));
  const lines = certificate.toString("base64").match(/.{1,64}/g) ?? [];
  return ["-----BEGIN CERTIFICATE-----", ...lines, "-----END CERTIFICATE-----", ""].join("\n");
}

function der(tag: keyof typeof TAG, ...parts: readonly Buffer[]): Buffer {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const head = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([TAG[tag], ...head]), ...parts]);
}

/** No authority below this one. */
function integer0(): Buffer {
  return der("integer", Buffer.from([0]));
}

/** 127 random bits, positive and with no leading zero byte. */
function serial(): Buffer {
  const bytes = randomBytes(16);
  bytes[0] = (bytes.readUInt8(0) & 0x7f) | 0x40;
  return bytes;
}

function commonName(name: string): Buffer {
  return der("sequence", der("set", der("sequence", COMMON_NAME, der("utf8", Buffer.from(name)))));
}

function time(ms: number): Buffer {
  const digits = new Date(ms).toISOString().replaceAll(/\.\d+|[-:T]/g, "");
  return ms < YEAR_2050_MS ? der("utcTime", Buffer.from(digits.slice(2))) : der("time", Buffer.from(digits));
}

function extension(name: keyof typeof EXTENSION, weight: "critical" | "informative", value: Buffer): Buffer {
  const id = der("oid", Buffer.from([0x55, 0x1d, EXTENSION[name]]));
  return der("sequence", id, ...(weight === "critical" ? [TRUE] : []), der("octets", value));
}

function keyId(publicKey: KeyObject): Buffer {
  return createHash("sha256")
    .update(publicKey.export({ type: "spki", format: "der" }))
    .digest()
    .subarray(0, 20);
}
