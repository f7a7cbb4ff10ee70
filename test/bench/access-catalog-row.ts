/** What one of many users sees of many repositories. */
import { hash } from "bcryptjs";
import { digestNamed, fillDatabase } from "./fill.ts";
import type { HostedTask } from "./hosted-clients.ts";
import { noisyVerdict, percentile, whole, type Bench } from "./runner.ts";
import type { Line } from "./table.ts";

const PAGE = 100;
const P99_MS = 20;
const PAGES = 2_000;
/** Who asks: a first login costs a check of the password. */
const READERS = 20;
const REPOSITORIES_EACH = 10;
const PASSWORD = "a password of the bench";

/** So many of each; repositories are ten a namespace, and the teams' namespaces stand between each other. */
interface Size {
  users: number;
  teams: number;
  repositories: number;
}

export async function userCatalogRow(bench: Bench): Promise<Line[]> {
  const { lab, upstream, progress } = bench;
  const size: Size = bench.quick
    ? { users: 1_000, teams: 100, repositories: 20_000 }
    : { users: 10_000, teams: 1_000, repositories: 100_000 };
  const root = await lab.newFolder("entrepot");
  // The daemon makes the schema itself.
  await (await lab.startEntrepot(upstream.port, root))[Symbol.asyncDispose]();
  progress("filling in users, teams and repositories");
  fill(root, size, await hash(PASSWORD, 10));

  await using entrepot = await lab.startEntrepot(upstream.port, root);
  await using client = lab.startHelper("./hosted-clients.ts");
  const namespaces = size.repositories / REPOSITORIES_EACH;
  const pages = (count: number): Promise<number[]> => {
    const asked: HostedTask = {
      kind: "pages",
      port: entrepot.port,
      // Half of the names follow: a whole page of those that the user sees.
      paths: Array.from({ length: count }, () => {
        const last = namespaceName(Math.floor((Math.random() * namespaces) / 2));
        return `/v2/_catalog?n=${PAGE}&last=${last}`;
      }),
      names: PAGE,
      basic: Array.from({ length: READERS }, (_, i) => `${userName(i * 37)}:${PASSWORD}`),
    };
    return client.ask<number[]>(asked);
  };
  const work = `catalog page of ${PAGE} of one of ${whole(size.users)} users in ${whole(size.teams)} teams, ${whole(size.repositories)} repositories`;
  progress(work);
  await pages(READERS * 10);
  const own = await pages(PAGES);
  const p99 = percentile(own, 0.99);
  return [
    {
      work,
      entrepot: `p99 ${p99.toFixed(1)} ms`,
      peer: "–",
      result: `median ${percentile(own, 0.5).toFixed(1)} ms`,
      target: `p99 < ${P99_MS} ms`,
      verdict: noisyVerdict(bench, p99 < P99_MS),
      samples: { entrepot: own },
    },
  ];
}

function userName(index: number): string {
  return `user-${index}`;
}

function namespaceName(index: number): string {
  return `space-${String(index).padStart(6, "0")}`;
}

/** Every user is in three teams, and one namespace of fifty is public. */
function fill(root: string, { users, teams, repositories }: Size, password: string): void {
  fillDatabase(root, (into) => {
    const addUser = into("users (id, name, password, admin, created_at)");
    const addTeam = into("teams (id, name, created_at)");
    const addMember = into("team_members (team_id, user_id, role, added_at)");
    for (let id = 1; id <= teams; id++) addTeam({ id, name: `team-${id}`, created_at: 0 });
    // The administrator, who asks nothing.
    addUser({ id: users + 1, name: "admin", password, admin: 1, created_at: 0 });
    for (let at = 0; at < users; at++) {
      addUser({ id: at + 1, name: userName(at), password, admin: 0, created_at: 0 });
      for (const team of new Set([at, at * 7 + 1, at * 13 + 5].map((one) => (one % teams) + 1)))
        addMember({ team_id: team, user_id: at + 1, role: "contributor", added_at: 0 });
    }
    const bytes = Buffer.from("{}");
    const digest = digestNamed("{}");
    const manifests = "manifests (digest, media_type, size, bytes, created_at, used_at)";
    into(manifests)({ digest, media_type: "application/json", size: 2, bytes, created_at: 0, used_at: 0 });
    const addNamespace = into("namespaces (name, visibility, team_id, created_at)");
    const addRepository = into("repositories (id, name, created_at)");
    const addContent = into("repository_content (repository_id, digest, linked_at)");
    for (let id = 1; id <= repositories; id++) {
      const space = Math.floor((id - 1) / REPOSITORIES_EACH);
      const name = namespaceName(space);
      const visibility = space % 50 === 0 ? "public" : "private";
      addNamespace({ name, visibility, team_id: (space % teams) + 1, created_at: 0 });
      addRepository({ id, name: `${name}/app-${id % REPOSITORIES_EACH}`, created_at: 0 });
      addContent({ repository_id: id, digest, linked_at: 0 });
    }
  });
}
