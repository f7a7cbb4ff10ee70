import { Api } from "../../kit/api.ts";
import { startRegistry, type RegistryOptions, type TestRegistry } from "../../kit/registry.ts";

type Json = Record<string, unknown>;

/** A registry with users, the first of whom is administrator. */
export interface People extends AsyncDisposable {
  registry: TestRegistry;
  api: Api;
  /** Sends a request as somebody. @returns the answer's body @throws AssertionError for another status */
  as: (user: string, status: number, method: string, path: string, body?: object) => Promise<Json>;
  /** What the items of a list's page are called. */
  names: (user: string, path: string) => Promise<unknown[]>;
  /** What was recorded of a subject, oldest first: `root: added`. */
  told: (subject: string) => Promise<string[]>;
}

/** Of everybody. */
export const PASSWORD = "a long enough password";

/** The credentials of a user that {@link startWithPeople} has made. */
export function basic(user: string): Record<string, string> {
  return { authorization: `Basic ${Buffer.from(`${user}:${PASSWORD}`).toString("base64")}` };
}

export async function startWithPeople(users: readonly string[], options: RegistryOptions = {}): Promise<People> {
  await using stack = new AsyncDisposableStack();
  const registry = stack.use(await startRegistry(options));
  const api = await Api.of(registry);
  const [first = "root"] = users;
  // The first one is made while access is open to this machine; then it is not any more.
  for (const name of users) await api.expect(201, "POST", "/users", { name, password: PASSWORD }, basic(first));
  const as: People["as"] = async (user, status, method, path, body) =>
    (await api.expect(status, method, path, body, basic(user))).body;
  const owned = stack.move();
  return {
    registry,
    api,
    as,
    names: async (user, path) => {
      const { items } = await as(user, 200, "GET", path);
      return (items as Json[]).map(({ name, user: member, team }) => name ?? member ?? team);
    },
    told: async (subject) => {
      const { items } = await as(first, 200, "GET", `/events?action=access&subject=${encodeURIComponent(subject)}`);
      return (items as Json[]).map(({ actor, detail }) => `${String(actor)}: ${String(detail)}`).toReversed();
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
