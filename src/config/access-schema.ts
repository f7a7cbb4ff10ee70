/** The section `access`: who may do what. */
import { z } from "zod";
import { duration, nonEmpty, section, whole } from "./fields.ts";

const htpasswd = z
  .strictObject({
    path: nonEmpty.describe("The file, as htpasswd -B writes it; it is read anew when it changes."),
    role: z
      .enum(["viewer", "contributor", "owner", "admin"])
      .default("contributor")
      .describe(
        "What all of them may do to every hosted repository: viewers pull, contributors push, too, owners also delete; admins may do everything.",
      ),
  })
  .describe("Names and passwords (bcrypt only) in a file, beside those in the database.");

export const access = section(
  {
    open: z
      .union([z.boolean(), z.literal("everywhere")])
      .optional()
      .describe(
        "Whether everybody may do everything, without logging in. Without it: clients on this machine may, as long as server.listen is an address of this machine and nobody can log in yet. everywhere: also where server.listen is reached from other machines.",
      ),
    htpasswd: htpasswd.optional(),
    signUp: z.boolean().default(false).describe("Whether whoever reaches the API may make a user for themselves."),
    passwordMinLength: whole(12, 8, 72, "Characters that a password of a user in the database has at least."),
    create: section(
      {
        namespaces: z
          .enum(["admins", "owners"])
          .default("owners")
          .describe("Who may make namespaces of a team: administrators, or the team's owners, too."),
        teams: z
          .enum(["admins", "users"])
          .default("admins")
          .describe("Who may make teams: administrators, or all users, who own what they make."),
        personal: z
          .boolean()
          .default(true)
          .describe("Whether a user's first push to the namespace of the user's own name makes it."),
      },
      "Who may make what.",
    ),
    tokens: section(
      {
        life: duration("5m", "How long a token of the token service is good.", { min: 60_000, max: 3_600_000 }),
        service: nonEmpty
          .optional()
          .describe(
            "What the token service calls this registry; without it, the host of server.publicUrl, or entrepot.",
          ),
        audiences: z
          .array(nonEmpty)
          .prefault([])
          .describe(
            "Services of other registries that this token service issues tokens for: their auth.token.service.",
          ),
        rotate: duration("90d", "How long a key signs before the next one does. 0s: for ever."),
      },
      "The token service.",
    ),
    brakes: section(
      {
        failures: whole(10, 1, 10_000, "Wrong passwords that an address, or an account, may try within the interval."),
        interval: duration("1m", "The interval.", { min: 1_000, max: 86_400_000 }),
      },
      "Against guessing. Whoever has logged in lately is not slowed down by others' mistakes.",
    ),
    metrics: z
      .enum(["public", "login"])
      .default("public")
      .describe("Who may read /metrics: everybody who reaches it, or those who have logged in."),
  },
  "Who may do what.",
);

/** The files of TLS. */
export const serverTls = z
  .strictObject({
    certificate: nonEmpty.describe("File of the certificate with its chain, in PEM; read anew when it changes."),
    key: nonEmpty.describe("File of its private key, in PEM."),
    clientAuthority: nonEmpty
      .optional()
      .describe(
        "File of the authorities, in PEM, whose client certificates log in the robot that their common name names.",
      ),
  })
  .describe("TLS, from version 1.2. Without it, the server speaks plain HTTP.");

export const visibility = z.enum(["private", "protected", "public"]);
