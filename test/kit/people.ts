import assert from "node:assert/strict";
import { readOperatorSecret } from "../../src/access/operator.ts";
import { Api } from "./api.ts";
import type { TestRegistry } from "./registry.ts";

/** What everybody's password is here, with the name in front: bcrypt takes its time with each of them once. */
export function passwordOf(name: string): string {
  return `${name} opens the door`;
}

export function basic(name: string, password = passwordOf(name)): { authorization: string } {
  return { authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}` };
}

export async function operatorOf(registry: TestRegistry): Promise<{ authorization: string }> {
  return { authorization: `Bearer ${await readOperatorSecret(registry.root)}` };
}

/** A token of the token service for these scopes; nobody's, where there are no credentials. */
export async function tokenFor(
  registry: TestRegistry,
  credentials: Record<string, string>,
  ...scopes: string[]
): Promise<{ authorization: string }> {
  const query = new URLSearchParams({ service: "entrepot" });
  for (const scope of scopes) query.append("scope", scope);
  const answer = await registry.get(`/token?${query.toString()}`, credentials);
  assert.equal(answer.status, 200, answer.bytes.toString());
  const { token } = JSON.parse(answer.bytes.toString()) as { token: string };
  return { authorization: `Bearer ${token}` };
}

/** The API in the hands of the operator. */
export async function adminApi(
  registry: TestRegistry,
): Promise<(method: string, path: string, body?: object) => Promise<Record<string, unknown>>> {
  const api = await Api.of(registry);
  const headers = await operatorOf(registry);
  return async (method, path, body) => {
    const answer = await api.send(method, path, body, headers);
    assert.ok(answer.status < 300, `${method} ${path} → ${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.body;
  };
}
