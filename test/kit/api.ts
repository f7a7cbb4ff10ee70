import assert from "node:assert/strict";
import { z } from "zod";
import type { Answer, TestRegistry } from "./registry.ts";

type Json = Record<string, unknown>;

/** An operation as the served document describes it. */
export interface Described {
  operationId: string;
  method: string;
  path: string;
  parameters: { name: string; in: "path" | "query" | "header"; required: boolean; schema: Json }[];
  requestBody?: { content: Record<string, { schema: Json }> };
  responses: Record<string, { content?: Record<string, { schema: Json }> }>;
}

/** The API of a daemon as a client sees it that holds every answer against the document that describes it. */
export class Api {
  readonly document: Json;
  readonly operations: readonly Described[];
  readonly #registry: TestRegistry;
  readonly #schemas = new Map<unknown, z.ZodType>();

  constructor(registry: TestRegistry, document: Json) {
    this.#registry = registry;
    this.document = document;
    this.operations = Object.entries(document["paths"] as Record<string, Record<string, Described>>).flatMap(
      ([path, methods]) =>
        Object.entries(methods).map(([method, one]) => ({ ...one, path, method: method.toUpperCase() })),
    );
  }

  static async of(registry: TestRegistry): Promise<Api> {
    const answer = await registry.get("/api/v1/openapi.json");
    assert.equal(answer.status, 200, answer.bytes.toString());
    return new Api(registry, JSON.parse(answer.bytes.toString()) as Json);
  }

  /** Sends a request below /api/v1. @throws AssertionError where the answer is another one than the document says */
  async send(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<{ status: number; headers: Answer["headers"]; body: Json; events: Json[] }> {
    const given = method === "POST" || body !== undefined ? { "content-type": "application/json" } : {};
    const answer = await this.#registry.send(
      method,
      `/api/v1${path}`,
      { ...given, ...headers },
      body === undefined ? undefined : JSON.stringify(body),
    );
    const parsed = this.check(method, path, answer);
    return { status: answer.status, headers: answer.headers, body: parsed[0] ?? {}, events: parsed };
  }

  /** As {@link send}, with the status that is expected. */
  async expect(status: number, ...request: Parameters<Api["send"]>): ReturnType<Api["send"]> {
    const answer = await this.send(...request);
    assert.equal(answer.status, status, JSON.stringify(answer.body));
    return answer;
  }

  /** Every item of a list, page by page. */
  async all(path: string): Promise<Json[]> {
    const items: Json[] = [];
    for (let cursor = ""; ;) {
      const { body } = await this.expect(200, "GET", `${path}${cursor}`);
      items.push(...(body["items"] as Json[]));
      if (typeof body["next"] !== "string") return items;
      cursor = `${path.includes("?") ? "&" : "?"}cursor=${body["next"]}`;
    }
  }

  /** @returns the JSON of the answer: one value, or one for each line. @throws AssertionError where it is undocumented */
  check(method: string, path: string, answer: Answer): Json[] {
    const told = `${method} ${path} → ${answer.status} ${answer.bytes.subarray(0, 500).toString()}`;
    const type = String(answer.headers["content-type"] ?? "").split(";")[0] ?? "";
    const described = this.#find(method, path);
    if (!described) {
      // Nothing is documented of what is no operation, but that it is told as a problem.
      assert.ok([400, 403, 404, 405].includes(answer.status), told);
      return [this.#valid({ $ref: "#/components/schemas/Problem" }, answer.bytes.toString(), told)];
    }
    const response = described.responses[String(answer.status)];
    assert.ok(response, `undocumented: ${told}`);
    const content = response.content?.[type];
    if (answer.bytes.length === 0) {
      assert.ok(content !== undefined || response.content === undefined, `undocumented type ${type}: ${told}`);
      return [];
    }
    assert.ok(content, `undocumented type ${type}: ${told}`);
    if (type.startsWith("text/")) return [];
    const texts = type.endsWith("ndjson") ? answer.bytes.toString().trimEnd().split("\n") : [answer.bytes.toString()];
    return texts.map((text) => this.#valid(content.schema, text, told));
  }

  #find(method: string, path: string): Described | undefined {
    const segments = (path.split("?")[0] ?? "").split("/");
    const fits = ({ path: template }: Described): boolean => {
      const parts = template.split("/");
      return (
        parts.length === segments.length &&
        parts.every((part, at) => part === segments[at] || (part.startsWith("{") && segments[at] !== ""))
      );
    };
    const parameters = ({ path: template }: Described): number => template.split("{").length;
    const [closest] = this.operations.filter(fits).toSorted((a, b) => parameters(a) - parameters(b));
    const wanted = method === "HEAD" ? "GET" : method;
    return this.operations.find((one) => one.path === closest?.path && one.method === wanted);
  }

  #valid(schema: Json, text: string, told: string): Json {
    const value = JSON.parse(text) as Json;
    const { success, error } = this.schema(schema).safeParse(value);
    assert.ok(success, `${error?.message}\n${told}`);
    return value;
  }

  /** A schema of the document as zod has it. */
  schema(schema: Json): z.ZodType {
    const known = this.#schemas.get(schema["$ref"] ?? schema);
    if (known) return known;
    const { schemas } = this.document["components"] as { schemas: Json };
    const local = (part: Json): Json =>
      JSON.parse(JSON.stringify(part).replaceAll("#/components/schemas/", "#/$defs/")) as Json;
    const made = z.fromJSONSchema({ ...local(schema), $defs: local(schemas) } as Parameters<
      typeof z.fromJSONSchema
    >[0]);
    this.#schemas.set(schema["$ref"] ?? schema, made);
    return made;
  }
}
