/**
 * The document that describes the API, made from the operations: nothing in it is written by hand twice.
 * Source: OpenAPI Specification 3.1.1; its schemas are JSON Schema 2020-12
 */
import { z } from "zod";
import { VERSION } from "../../base/version.ts";
import { operation, type AnswerKind, type Operation, type Shape } from "./operation.ts";
import { PROBLEMS, type ProblemKind } from "./problem.ts";
import { problem } from "./schemas.ts";
import { EVENT_STREAM } from "./server-sent.ts";

type Json = Record<string, unknown>;

/** What any operation may answer with. */
const ALWAYS: readonly ProblemKind[] = [
  "malformed-request",
  "invalid-input",
  "unauthorized",
  "forbidden",
  "too-many-requests",
  "internal",
  "unavailable",
];

/** The operation that tells all, itself included. */
export function openApiOperation(operations: readonly Operation[]): Operation {
  let document: Json | undefined;
  const self: Operation = operation({
    id: "describe",
    method: "GET",
    path: "/openapi.json",
    tag: "daemon",
    summary: "Describes this API as OpenAPI 3.1",
    allows: "anyone",
    answers: { 200: { description: "An OpenAPI document", schema: z.looseObject({ openapi: z.string() }) } },
    handle: () => ({ status: 200, body: (document ??= describe([...operations, self])) }),
  });
  return self;
}

/** @throws Error where two operations share an id, or a path and a method, or a path's parameters are not described */
export function describe(operations: readonly Operation[]): Json {
  const schemas: Json = {};
  const paths: Record<string, Json> = {};
  for (const each of operations) {
    const path = (paths[each.path] ??= {});
    path[each.method.toLowerCase()] = describeOperation(each, schemas);
  }
  return {
    openapi: "3.1.1",
    info: {
      title: "Entrepot",
      version: VERSION,
      description: "The API that the command line and the console use.",
    },
    servers: [{ url: "/api/v1" }],
    tags: [...new Set(operations.map(({ tag }) => tag))].map((name) => ({ name })),
    paths,
    components: { schemas },
  };
}

function describeOperation(each: Operation, schemas: Json): Json {
  const { id, tag, summary, description, params, query, body, matches, serverSent } = each;
  const headers = [
    ...(matches ? [headerParameter("If-Match", "The ETag of what is to be changed.")] : []),
    ...(serverSent ? [headerParameter("Last-Event-ID", "Of the last event that was received.")] : []),
    ...(each.etag && each.method === "GET" ? [headerParameter("If-None-Match", "The ETag of what is known.")] : []),
  ];
  return {
    operationId: id,
    tags: [tag],
    summary,
    ...(description === undefined ? {} : { description }),
    parameters: [...parametersOf(params, "path", schemas), ...parametersOf(query, "query", schemas), ...headers],
    ...(body
      ? {
          requestBody: {
            required: true,
            content: { "application/json": { schema: jsonSchema(body, "input", schemas) } },
          },
        }
      : {}),
    responses: {
      ...Object.fromEntries(
        Object.entries(each.answers).map(([status, kind]) => [status, describeAnswer(each, kind, schemas)]),
      ),
      ...(each.etag && each.method === "GET" ? { 304: { description: "It is what If-None-Match names" } } : {}),
      ...problemAnswers(each, schemas),
    },
  };
}

function headerParameter(name: string, description: string): Json {
  return { name, in: "header", required: false, description, schema: { type: "string" } };
}

function parametersOf(shape: Shape | undefined, where: "path" | "query", schemas: Json): Json[] {
  return Object.entries(shape ?? {}).map(([name, schema]) => {
    const { description, ...rest } = jsonSchema(schema, "output", schemas);
    return {
      name,
      in: where,
      required: where === "path" || !schema.safeParse(undefined).success,
      ...(description === undefined ? {} : { description }),
      schema: rest,
    };
  });
}

function describeAnswer(
  { streams, serverSent, etag }: Operation,
  { description, schema, text }: AnswerKind,
  schemas: Json,
): Json {
  const type = serverSent ? EVENT_STREAM : streams ? "application/x-ndjson" : "application/json";
  return {
    description: streams
      ? `${description}; one JSON object a line`
      : serverSent
        ? `${description}; the data of each event is JSON`
        : description,
    ...(etag ? { headers: { ETag: { schema: { type: "string" }, description: "The state of it." } } } : {}),
    ...(schema
      ? {
          content: {
            [type]: { schema: jsonSchema(schema, "output", schemas) },
            ...(text === undefined ? {} : { [text]: { schema: { type: "string" } } }),
          },
        }
      : {}),
  };
}

function problemAnswers({ method, body, problems, matches }: Operation, schemas: Json): Json {
  const kinds = new Set<ProblemKind>([...ALWAYS, ...(problems ?? [])]);
  if (method !== "GET" && (method !== "DELETE" || body)) kinds.add("too-large").add("unsupported-media-type");
  if (matches) kinds.add("precondition-failed");
  const byStatus = Map.groupBy(kinds, (kind) => PROBLEMS[kind][0]);
  const schema = jsonSchema(problem, "output", schemas);
  return Object.fromEntries(
    [...byStatus].map(([status, names]) => [
      status,
      {
        description: names.map((name) => `${PROBLEMS[name][1]} (\`/problems/${name}\`)`).join("; "),
        content: { "application/problem+json": { schema } },
      },
    ]),
  );
}

/** A schema whose named parts (`.meta({ id })`) have become components. */
function jsonSchema(schema: z.ZodType, io: "input" | "output", schemas: Json): Json {
  const { $defs = {}, ...made }: Json & { $defs?: Record<string, Json> } = z.toJSONSchema(schema, { io });
  for (const [name, part] of Object.entries($defs)) schemas[name] = partOf(part);
  const { id } = made;
  if (typeof id !== "string") return partOf(made);
  schemas[id] = partOf(made);
  return { $ref: `#/components/schemas/${id}` };
}

/** A schema within the document, which says for all of them where it is and what dialect they speak. */
function partOf(schema: Json): Json {
  const text = JSON.stringify({ ...schema, id: undefined, $schema: undefined });
  return JSON.parse(text.replaceAll('"#/$defs/', '"#/components/schemas/')) as Json;
}
