import { Api } from "../../kit/api.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../../kit/registry.ts";

type Headers = Record<string, string>;

/** A registry with an administrator (root), the teams `team` (olga owns it, carl contributes) and `other` (vera owns it). */
export interface WithOwners extends AsyncDisposable {
  registry: TestRegistry;
  api: Api;
  /** As whom a request is sent: by the password. */
  as: (name: "root" | "olga" | "carl" | "vera") => Headers;
}

/** Of Basic. */
export function basic(name: string, secret: string): Headers {
  return { authorization: `Basic ${Buffer.from(`${name}:${secret}`).toString("base64")}` };
}

export async function startWithOwners(options: RegistryOptions = {}): Promise<WithOwners> {
  await using stack = new AsyncDisposableStack();
  const registry = stack.use(await startRegistry(options));
  const api = await Api.of(registry);
  const as: WithOwners["as"] = (name) => basic(name, `a long password of ${name}`);
  // The first one becomes administrator, and from then on access is not open any more.
  for (const name of ["root", "olga", "carl", "vera"])
    await api.expect(201, "POST", "/users", { name, password: `a long password of ${name}` }, as("root"));
  for (const name of ["team", "other"]) await api.expect(201, "POST", "/teams", { name }, as("root"));
  for (const [team, name, role] of [
    ["team", "olga", "owner"],
    ["team", "carl", "contributor"],
    ["other", "vera", "owner"],
  ])
    await api.expect(204, "PUT", `/teams/${team}/members/${name}`, { role }, as("root"));
  const owned = stack.move();
  return { registry, api, as, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
