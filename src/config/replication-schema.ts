/** The section `replication`: between which registries images are copied, and by which rules. */
import picomatch from "picomatch";
import { validRange } from "semver";
import { z } from "zod";
import { PLACEHOLDERS, readRepositories, unknownPlaceholders } from "../oci/repository-glob.ts";
import { isTag } from "../oci/reference.ts";
import { endpoint } from "./endpoint-schema.ts";
import { duration, isCron, matching, nonEmpty, readSecret, section, whole } from "./fields.ts";
import { SELF, replicationFaults } from "./replication-checks.ts";

const { connections: _, ...address } = endpoint;

const notifications = z
  .strictObject({
    secret: nonEmpty.optional().meta({
      description: "What it has to present when it tells of a push. A secret: prefer secretFile.",
      writeOnly: true,
    }),
    secretFile: nonEmpty.optional().describe("File that holds the secret; a line break at its end is left out."),
  })
  .transform(({ secret, secretFile }, context) => {
    const refuse = (path: string[], message: string, remedy: string) => {
      context.issues.push({ code: "custom", message, params: { remedy }, path, input: undefined });
      return z.NEVER;
    };
    if ((secret === undefined) === (secretFile === undefined)) {
      return refuse([], "needs exactly one of secret and secretFile", "write one that cannot be guessed into a file");
    }
    if (secretFile === undefined) return { secret };
    const read = readSecret(secretFile);
    return "secret" in read ? { secret: read.secret } : refuse(["secretFile"], read.message, read.remedy);
  })
  .describe("Webhooks of this registry that start copies at once.");

const registry = z
  .strictObject({
    ...address,
    notifications: notifications.optional(),
    concurrency: whole(8, 1, 256, "Requests to this registry at a time."),
    quota: section(
      {
        keep: whole(0, 0, Number.MAX_SAFE_INTEGER, "Pulls of its rate limit that copies leave to others."),
      },
      "A budget for registries that limit pulls, as Docker Hub does.",
    ),
  })
  .describe("A registry that rules copy from or to.");

const repositories = matching(
  (text) => readRepositories([text]) !== undefined,
  "matches no name that a repository can have",
  "write a name such as library/node, in which * stands for text within a component, ** for any components, {a,b} for one of them",
);

const tagGlob = matching(
  isTagGlob,
  "matches no name that a tag can have",
  "write a tag in which * stands for any text and {a,b} for one of them, such as v1.* or *-alpine",
);

const registryName = nonEmpty.describe(`A key under replication.registries, or ${SELF}: this registry.`);

/** One rule, apart from others. */
export const replicationRule = z
  .strictObject({
    name: matching(
      (text) => /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/.test(text),
      "is not a rule's name",
      "write letters, digits and . _ - between them",
    ).describe("What commands call it."),
    from: z
      .strictObject({
        registry: registryName,
        repositories: z
          .array(repositories)
          .min(1)
          .describe("Globs of repositories. Without a * in them, the registry need not list what it has."),
      })
      .describe("What is copied."),
    to: z
      .array(
        z.strictObject({
          registry: registryName,
          repository: matching(
            (text) => unknownPlaceholders(text).length === 0,
            "has a placeholder that stands for nothing",
            `there are ${PLACEHOLDERS.map((name) => `{{${name}}}`).join(", ")}`,
          )
            .prefault("{{path}}")
            .describe(
              "The copy's name. {{path}} is the source's, {{name}} its last component, {{namespace}} what comes before that, {{registry}} the source's registry.",
            ),
        }),
      )
      .min(1)
      .describe("Where it is copied to."),
    tags: section(
      {
        match: z.array(tagGlob).prefault(["*"]).describe("Globs of the tags that are copied."),
        semver: matching(
          (text) => text.trim() !== "" && validRange(text) !== null,
          "is not a range of versions",
          'write a range such as ">=18" or "^1.4"',
        )
          .optional()
          .describe("Of these, only versions in this range."),
        exclude: z.array(tagGlob).prefault([]).describe("Of these, none that match."),
        newest: whole(0, 0, 100_000, "Of these, so many: the highest versions, then other names in order. 0: all."),
        maxAge: duration("0s", "Of these, none whose image was made longer ago. 0s: all."),
        always: z.array(tagGlob).prefault([]).describe("Globs of tags that are copied, whatever stands above."),
      },
      "Which tags, in stages: each takes away from what the one before it left.",
    ),
    platforms: section(
      {
        only: z
          .array(
            matching(
              (text) => /^[a-z0-9]+\/[a-z0-9_]+(?:\/[a-z0-9.]+)?$/.test(text),
              "is no platform",
              "write one such as linux/amd64 or linux/arm/v7",
            ),
          )
          .prefault([])
          .describe("Of an index, only the images for these, such as linux/amd64. None: all."),
        index: z
          .enum(["all", "sparse", "rewrite"])
          .default("sparse")
          .describe(
            "What becomes of an index of which only some is wanted: sparse leaves it as it is, rewrite makes one of what was copied, under another digest; all copies everything, whatever only says.",
          ),
      },
      "Which platforms.",
    ),
    attached: section(
      {
        referrers: z
          .boolean()
          .default(false)
          .describe("Whether what refers to an image is copied with it; costs a request for each tag."),
        digestTags: z
          .boolean()
          .default(true)
          .describe("Whether tags that are named after an image's digest, as cosign writes them, are copied with it."),
        require: z
          .array(z.enum(["signature"]))
          .prefault([])
          .describe("What an image has to have, or it is not copied."),
      },
      "What belongs to an image.",
    ),
    write: section(
      {
        existing: z
          .enum(["replace", "keep", "fail"])
          .default("replace")
          .describe(
            "A tag that points to something else at the target: replace moves it, keep leaves it, fail does so and tells.",
          ),
        backup: matching(
          (text) => /\{\{tag\}\}/.test(text) && text !== "{{tag}}" && isTag(text.replaceAll("{{tag}}", "a")),
          "is not the name of a second tag",
          'write one with {{tag}} in it, such as "{{tag}}-prev"',
        )
          .optional()
          .describe("A tag that is moved stays under this name, too, such as {{tag}}-prev."),
        immutable: z.array(tagGlob).prefault([]).describe("Globs of tags that are never moved once they are there."),
        together: z.boolean().default(false).describe("Whether a run moves its tags at its end, all of them or none."),
      },
      "What happens to tags that are there.",
    ),
    on: section(
      {
        cron: matching(isCron, "is not a cron expression", "write five fields such as 0 */2 * * *")
          .optional()
          .describe("When it runs by itself: a cron expression in UTC. Without it, runs are begun by hand alone."),
        push: z.boolean().default(false).describe("Whether a push to its source starts the copy at once."),
        window: matching(isWindow, "is no part of the day", 'write two times in UTC such as "20:00-06:00"')
          .optional()
          .describe(
            "When copies that nobody asked for by hand begin, in UTC, such as 20:00-06:00. Without it, always.",
          ),
      },
      "What starts it.",
    ),
    delete: section(
      {
        mirror: z
          .boolean()
          .default(false)
          .describe("Whether tags go at the target that the source has no more, or that the rule leaves out now."),
        ownedOnly: z.boolean().default(true).describe("Only those that this rule has put there."),
        grace: duration("7d", "So long after a run has first missed them."),
        maxPercent: whole(
          5,
          1,
          100,
          "At most so many in a hundred of a repository's copies a run, but one in any case; else none.",
        ),
      },
      "Which tags it deletes at a target.",
    ),
  })
  .describe("What is copied where.");

export const replication = section(
  {
    registries: z
      .record(z.string(), registry)
      .prefault({})
      .describe("Registries that rules copy from and to, by name."),
    rules: z.array(replicationRule).prefault([]).describe("What is copied where."),
  },
  "Copies of selected repositories, kept in step.",
)
  .superRefine((given, context) => {
    for (const { message, remedy, path } of replicationFaults(given)) {
      context.addIssue({ code: "custom", message, path, params: { remedy } });
    }
  })
  .describe("Copies of selected repositories, kept in step.");

function isTagGlob(text: string): boolean {
  if (!/^!?[A-Za-z0-9_*?[{(@+][A-Za-z0-9._*?[\]{}()|,!@+^-]*$/.test(text)) return false;
  try {
    picomatch.makeRe(text, { dot: true, strictBrackets: true });
    return true;
  } catch {
    return false;
  }
}

/** `20:00-06:00`; the end is exclusive. */
function isWindow(text: string): boolean {
  const [from, to] = /^((?:[01]\d|2[0-3]):[0-5]\d)-((?:[01]\d|2[0-3]):[0-5]\d)$/.exec(text)?.slice(1) ?? [];
  return from !== undefined && from !== to;
}
