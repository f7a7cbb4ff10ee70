import type { Sight } from "../store/visible.ts";
import type { Caller, Limit } from "./principal.ts";
import { rightsOf } from "./rights.ts";
import { seesAll } from "./space-index.ts";
import type { Spaces } from "./spaces.ts";
import { anyOf, beginningWith, bothOf, oneOf, type Ahead } from "./starts.ts";

const everything: Ahead = (from) => from;

/** What somebody may pull, for lists of repositories. Good for one page: what changes afterwards it may not know. */
export function sightOf(caller: Caller, spaces: Spaces): Sight {
  const { principal, granted } = caller;
  const limits = "limits" in principal ? principal.limits : undefined;
  return {
    sees: (repository, upstream) => rightsOf(caller, spaces.of(repository, upstream), repository).has("pull"),
    ahead: [
      seesAll(principal) ? everything : spaces.ahead(principal),
      ...(limits ? [leftBy(limits)] : []),
      ...(granted ? [oneOf(granted.keys())] : []),
    ].reduce(bothOf),
  };
}

/** Where names begin that the limits may leave. */
function leftBy(limits: readonly Limit[]): Ahead {
  const pulling = limits.filter(({ verbs }) => verbs.includes("pull"));
  return anyOf(pulling.flatMap(({ repositories }) => repositories.map((glob) => beginningWith(literalStart(glob)))));
}

/** What every name that the glob matches begins with. */
function literalStart(glob: string): string {
  const [start = ""] = /^[a-z0-9][a-z0-9._:/-]*/.exec(glob) ?? [];
  // A slash before ** may match nothing.
  return start.replace(/\/+$/, "");
}
