import { z } from "zod";
import type { Path } from "./faults.ts";
import { configSchema } from "./schema.ts";

/** The part of a JSON Schema that the configuration's uses. */
export interface JsonSchema {
  type?: string;
  description?: string;
  properties?: Record<string, JsonSchema>;
  additionalProperties?: JsonSchema | false;
  items?: JsonSchema;
  required?: string[];
  minimum?: number;
  maximum?: number;
  /** A secret: may be given, is never shown. */
  writeOnly?: boolean;
  /** What the number inside counts: milliseconds or bytes. */
  "x-unit"?: "duration" | "size";
}

let root: JsonSchema | undefined;

function rootSchema(): JsonSchema {
  if (root !== undefined) return root;
  root = z.toJSONSchema(configSchema, { io: "input" }) as JsonSchema;
  const upstreams = root.properties?.["upstreams"];
  const upstream = upstreams?.additionalProperties;
  if (upstreams && upstream) {
    // The one entry that may leave out its address.
    const { required: _, ...dockerHub } = upstream;
    upstreams.properties = { "docker.io": dockerHub };
  }
  return root;
}

/** JSON Schema (draft 2020-12) of a configuration file, with descriptions and defaults. */
export function configJsonSchema(): object {
  return structuredClone(rootSchema());
}

/** What the schema says about one key; undefined for a key that does not exist. */
export function schemaAt(path: Path): JsonSchema | undefined {
  return path.reduce<JsonSchema | undefined>((node, key) => {
    if (typeof key === "number") return node?.items;
    if (node?.properties && Object.hasOwn(node.properties, key)) return node.properties[key];
    return node?.additionalProperties || undefined;
  }, rootSchema());
}
