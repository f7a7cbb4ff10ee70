/** The address of a registry, and how it is reached: of an upstream, its fallbacks, and the registries that images are copied between. */
import { z } from "zod";
import {
  A_WAIT,
  anySize,
  duration,
  host,
  hostGlob,
  httpUrl,
  matching,
  nonEmpty,
  reading,
  readSecret,
  section,
  whole,
  withoutCredentials,
} from "./fields.ts";

const auth = z
  .strictObject({
    username: nonEmpty.optional().describe("User name; goes with password or passwordFile."),
    password: nonEmpty
      .optional()
      .meta({ description: "Password or access token. A secret: prefer passwordFile.", writeOnly: true }),
    passwordFile: nonEmpty.optional().describe("File that holds the password; a line break at its end is left out."),
    dockerConfig: nonEmpty.optional().describe("A docker config.json whose credentials for this host are used."),
    credentialHelper: matching(
      (text) => /^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(text),
      "is not the name of a credential helper",
      "write what follows docker-credential- in the program's name, such as ecr-login",
    )
      .optional()
      .describe("A program docker-credential-X on the PATH; give X."),
  })
  .transform((given, context) => {
    const { username, password, passwordFile, dockerConfig, credentialHelper } = given;
    const refuse = (key: keyof typeof given | undefined, message: string, remedy: string) => {
      context.issues.push({ code: "custom", message, params: { remedy }, path: key ? [key] : [], input: undefined });
      return z.NEVER;
    };
    const basic = username !== undefined || password !== undefined || passwordFile !== undefined;
    if (Number(basic) + Number(dockerConfig !== undefined) + Number(credentialHelper !== undefined) !== 1) {
      return refuse(
        undefined,
        "needs exactly one source of credentials",
        "give username and passwordFile, or dockerConfig, or credentialHelper",
      );
    }
    if (dockerConfig !== undefined) return { dockerConfig };
    if (credentialHelper !== undefined) return { credentialHelper };
    if (username === undefined) return refuse(undefined, "has a password and no username", "add username");
    if (password !== undefined && passwordFile !== undefined) {
      return refuse("passwordFile", "stands beside password", "keep one of password and passwordFile");
    }
    if (password !== undefined) return { username, password };
    if (passwordFile === undefined) return refuse(undefined, "has a username and no password", "add passwordFile");
    const read = readSecret(passwordFile);
    return "secret" in read ? { username, password: read.secret } : refuse("passwordFile", read.message, read.remedy);
  })
  .describe(
    "Credentials for this host alone; exactly one of username and password(File), dockerConfig, credentialHelper.",
  );

const tls = z
  .strictObject({
    ca: nonEmpty.optional().describe("PEM file with the authorities that may sign this host's certificate."),
    certificate: nonEmpty.optional().describe("PEM file with a client certificate; goes with key."),
    key: nonEmpty.optional().describe("PEM file with the client certificate's key."),
  })
  .superRefine(({ certificate, key }, context) => {
    if ((certificate === undefined) === (key === undefined)) return;
    const [given, missing] = certificate === undefined ? ["key", "certificate"] : ["certificate", "key"];
    context.addIssue({
      code: "custom",
      message: `stands without ${missing}`,
      path: [given],
      params: { remedy: `add ${missing}` },
    });
  })
  .describe("TLS towards this host, where the system's authorities are not enough.");

export const endpoint = {
  url: reading(
    (text) => withoutCredentials(httpUrl(text))?.href.replace(/\/+$/, ""),
    "is not an http or https URL without credentials, query and fragment",
    "write an address such as https://registry.example.com; credentials go into auth",
  ).describe("Address of the registry, http or https; a path prefix is allowed."),
  auth: auth.optional(),
  tls: tls.optional(),
  proxy: reading(
    (text) => httpUrl(text)?.href,
    "is not an http or https URL",
    "write an address such as http://proxy.example.com:3128",
  )
    .optional()
    .describe("HTTP proxy on the way to this host; may hold credentials, which are a secret."),
  realms: z.array(host).prefault([]).describe("Further hosts that may be asked for this host's tokens."),
  trustedHosts: z
    .array(hostGlob)
    .prefault([])
    .describe("Hosts (globs) that may resolve to private addresses: targets of this host's redirects."),
  allowPrivate: z
    .boolean()
    .default(false)
    .describe("Whether this host's public-looking name may resolve to a private address."),
  connections: whole(16, 1, 256, "Connections to this host at a time."),
  bandwidth: anySize(
    "What is read from this host, and sent to it, at most; without it, no limit.",
    1024,
    "A size per second",
  ).optional(),
  requests: whole(0, 0, 100_000, "Requests sent to this host a second at most; 0: no limit."),
  timeouts: section(
    {
      connect: duration("5s", "Until a connection with TLS stands.", A_WAIT),
      firstByte: duration("15s", "From a request to the head of its answer.", A_WAIT),
      progress: duration("20s", "How long a body may stand still.", A_WAIT),
    },
    "Deadlines towards this host.",
  ),
};
