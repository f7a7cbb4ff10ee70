import type { Config } from "../config/schema.ts";

/**
 * Who may make what, as of now. Where whoever likes signs up, nobody takes a namespace by the choice of a name: clients that mirror the default
 * upstream would be given that user's images for those of the same name there. Administrators give namespaces to those whom they know.
 */
export function createRules({ access, upstreams }: Pick<Config, "access" | "upstreams">): Config["access"]["create"] {
  const { create, signUp } = access;
  if (!signUp || !Object.values(upstreams).some((upstream) => upstream.default)) return create;
  return { ...create, personal: false, namespaces: create.teams === "users" ? "admins" : create.namespaces };
}
