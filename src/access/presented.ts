import { isHashable } from "./passwords.ts";

/** What an `Authorization` header presents. */
export type Presented =
  | { kind: "password"; user: string; password: string }
  /** Of a robot, or a personal token; `user` where it came as the password of a user name. */
  | { kind: "secret"; user: string | undefined; secret: string }
  | { kind: "operator"; user: string | undefined; secret: string }
  /** Of the token service, or none. */
  | { kind: "token"; token: string }
  /** Nothing that anybody logs in by: without a user name or a password, too long for one, not UTF-8. */
  | { kind: "unusable" }
  | { kind: "other"; scheme: string };

const MAX_USER_BYTES = 256;
const SECRET = /^entrepot_[A-Za-z0-9_-]{43}$/;
const OPERATOR = /^operator_[A-Za-z0-9_-]{43}$/;
const HEADER = /^([A-Za-z0-9!#$%&'*+.^_`|~-]{1,40})(?: +(.*))?$/;
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Reads an `Authorization` header.
 * Sources: RFC 9110 §11.6.2; RFC 7617 (Basic: UTF-8, the first colon ends the user name, no control characters); RFC 6750 (Bearer)
 */
export function parseAuthorization(header: string): Presented {
  const [, scheme = "", rest = ""] = HEADER.exec(header.trim()) ?? [];
  const credentials = rest.trim();
  switch (scheme.toLowerCase()) {
    case "basic":
      return ofBasic(credentials);
    case "bearer":
      if (SECRET.test(credentials)) return { kind: "secret", user: undefined, secret: credentials };
      if (OPERATOR.test(credentials)) return { kind: "operator", user: undefined, secret: credentials };
      return { kind: "token", token: credentials };
    default:
      return { kind: "other", scheme };
  }
}

function ofBasic(credentials: string): Presented {
  let text: string;
  try {
    text = utf8.decode(Buffer.from(credentials, "base64"));
  } catch {
    return { kind: "unusable" };
  }
  const colon = text.indexOf(":");
  const user = text.slice(0, Math.max(colon, 0));
  const password = text.slice(colon + 1);
  if (user === "" || Buffer.byteLength(user) > MAX_USER_BYTES || /\p{Cc}/u.test(user)) return { kind: "unusable" };
  if (SECRET.test(password)) return { kind: "secret", user, secret: password };
  if (OPERATOR.test(password)) return { kind: "operator", user, secret: password };
  return isHashable(password) ? { kind: "password", user, password } : { kind: "unusable" };
}
