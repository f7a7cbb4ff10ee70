import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { test } from "node:test";
import * as fc from "fast-check";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import { parseConfig } from "../../src/config/load.ts";
import { isSettled, planRule } from "../../src/replication/plan.ts";
import { runPlan, type RunOutcome } from "../../src/replication/run.ts";
import { pushImage, select } from "../kit/hosted.ts";
import { makeImage, type Image } from "../kit/images.ts";
import { startRegistry, until, type TestRegistry } from "../kit/registry.ts";
import { openAll } from "./opened.ts";

const IMAGES = ["a", "b", "c"].map((seed) => makeImage({ layers: [300], seed }));
const [first, second, third] = IMAGES as [Image, Image, Image];

/** Rules between registries, each of which is named by its link: `west-east` copies from west to east. */
async function withLinks<T>(
  sites: Record<string, TestRegistry>,
  links: string[],
  write: object,
  work: (link: (name: string) => Link) => Promise<T>,
): Promise<T> {
  const rules = links.map((name) => {
    const [from = "", to] = name.split("-");
    return { name, from: { registry: from, repositories: ["team/*"] }, to: [{ registry: to }], write };
  });
  const urls = Object.entries(sites).map(([name, { url }]) => [name, { url }] as const);
  const { replication } = parseConfig({ replication: { registries: Object.fromEntries(urls), rules } });
  await using opened = await openAll(replication.registries, Object.keys(sites));
  const { registries } = opened;
  const signal = AbortSignal.timeout(30_000);
  return await work((name) => {
    const rule = replication.rules.find((one) => one.name === name);
    assert.ok(rule);
    const plan = () => planRule(rule, registries, { sizes: false, nowMs: Date.now(), signal });
    return {
      plan,
      run: async (planned) => {
        const outcomes: RunOutcome[] = [];
        await runPlan(planned ?? (await plan()), rule, registries, (outcome) => outcomes.push(outcome), signal);
        return outcomes;
      },
    };
  });
}

interface Link {
  plan: () => ReturnType<typeof planRule>;
  run: (planned?: Awaited<ReturnType<typeof planRule>>) => Promise<RunOutcome[]>;
}

async function stateOf(site: TestRegistry, name: string): Promise<unknown> {
  const { status, headers } = await site.send("HEAD", `/v2/${name}`.replace(/:(?=[^/]*$)/, "/manifests/"));
  return status === 404 ? undefined : [headers["docker-content-digest"], headers["entrepot-origin"]];
}

/** A clock that is wrong by so much. */
const skewed = (ms: number): Clock => ({ ...systemClock, now: () => Date.now() + ms });

/** Runs all links until none changes anything. */
async function settle(link: (name: string) => Link, links: string[]): Promise<void> {
  for (let round = 1; ; round++) {
    assert.ok(round <= links.length + 2, "copies go round and round");
    let changed = false;
    for (const name of links) {
      const { plan, run } = link(name);
      const planned = await plan();
      if (isSettled(planned)) continue;
      changed = true;
      for (const { outcome, notes } of await run(planned)) assert.notEqual(outcome, "failed", notes.join());
      assert.ok(isSettled(await plan()), "a plan after a run is empty");
    }
    if (!changed) return;
  }
}

test("two sites that copy the same names to each other come to rest with what was pushed last, wherever that was", async () => {
  await using west = await startRegistry();
  await using east = await startRegistry();
  const links = ["west-east", "east-west"];
  await withLinks({ west, east }, links, {}, async (link) => {
    await pushImage(west, "team/app", first, "1");
    await pushImage(east, "team/app", second, "1");
    await settle(link, links);
    assert.equal(((await stateOf(west, "team/app:1")) as string[])[0], second.digest);
    assert.deepEqual(await stateOf(west, "team/app:1"), await stateOf(east, "team/app:1"));

    await pushImage(west, "team/app", third, "1");
    await settle(link, links.toReversed());
    assert.equal(((await stateOf(east, "team/app:1")) as string[])[0], third.digest);
    assert.deepEqual(await stateOf(west, "team/app:1"), await stateOf(east, "team/app:1"));

    const [planned] = (await link("east-west").plan()).repositories;
    assert.deepEqual(
      planned?.tags.map(({ action }) => action),
      ["same"],
    );
  });
});

test("a plan says what was pushed later at the target, and sends nothing of it", async () => {
  await using west = await startRegistry();
  await using east = await startRegistry();
  await withLinks({ west, east }, ["west-east"], { backup: "{{tag}}-prev" }, async (link) => {
    await pushImage(west, "team/app", first, "1");
    await pushImage(east, "team/app", second, "1");
    const { plan, run } = link("west-east");
    const planned = await plan();
    const [tag] = planned.repositories[0]?.tags ?? [];
    assert.deepEqual(tag && "because" in tag && [tag.action, tag.because], ["keep", "it was pushed later there"]);
    assert.deepEqual(await run(planned), []);
    assert.equal(await stateOf(east, "team/app:1-prev"), undefined);
  });
});

test("a push that comes to the target while a copy is under way is kept, and told", async () => {
  await using west = await startRegistry();
  await using east = await startRegistry();
  await withLinks({ west, east }, ["west-east"], {}, async (link) => {
    await pushImage(west, "team/app", first, "1");
    const { plan, run } = link("west-east");
    const planned = await plan();
    await pushImage(east, "team/app", second, "1");
    const [outcome] = await run(planned);
    assert.equal(outcome?.outcome, "kept");
    assert.match(outcome.notes.join(), /was pushed later, and is kept/);
    assert.equal(((await stateOf(east, "team/app:1")) as string[])[0], second.digest);
  });
});

test("a push of what the other side has already is known there, and outlasts what was pushed between", async () => {
  await using west = await startRegistry();
  // Its clock is behind: what it pushes next is still what counts.
  await using east = await startRegistry({ clock: skewed(-120_000) });
  const links = ["west-east", "east-west"];
  await withLinks({ west, east }, links, {}, async (link) => {
    await pushImage(east, "team/app", first, "1");
    await settle(link, links);
    await pushImage(west, "team/app", first, "1");
    assert.equal((await link("west-east").plan()).repositories[0]?.tags[0]?.action, "mark");
    await settle(link, links);
    assert.deepEqual(await stateOf(west, "team/app:1"), await stateOf(east, "team/app:1"));
    await pushImage(east, "team/app", second, "1");
    await settle(link, links);
    assert.equal(((await stateOf(west, "team/app:1")) as string[])[0], second.digest);
  });
});

test("three sites, in a chain or a ring, agree on every tag, whatever was pushed where and which rules ran between", async () => {
  await using a = await startRegistry();
  await using b = await startRegistry({ clock: skewed(60_000) });
  await using c = await startRegistry({ clock: skewed(-60_000) });
  const sites = { a, b, c };
  let worlds = 0;
  const shapes = { chain: ["a-b", "b-c", "c-b", "b-a"], ring: ["a-b", "b-c", "c-a"] };
  const step = fc.oneof(
    fc.record({
      site: fc.constantFrom("a" as const, "b" as const, "c" as const),
      tag: fc.constantFrom("1", "2"),
      image: fc.constantFrom(first, second, third),
    }),
    fc.record({ link: fc.nat(3) }),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom("chain" as const, "ring" as const),
      fc.array(step, { minLength: 3, maxLength: 8 }),
      async (shape, steps) => {
        const name = `team/app-${worlds++}`;
        const links = shapes[shape];
        await withLinks(sites, links, {}, async (link) => {
          for (const one of steps) {
            if ("site" in one) await pushImage(sites[one.site], name, one.image, one.tag);
            else await link(links[one.link % links.length] ?? "").run();
          }
          await settle(link, links);
        });
        for (const tag of ["1", "2"]) {
          const here = await stateOf(a, `${name}:${tag}`);
          assert.deepEqual(await stateOf(b, `${name}:${tag}`), here);
          assert.deepEqual(await stateOf(c, `${name}:${tag}`), here);
        }
      },
    ),
    { numRuns: 12 },
  );
});

/** An address that leads to a registry once that has started: each of two has to know the other's. */
async function startWay(): Promise<AsyncDisposable & { url: string; lead: (to: TestRegistry) => void }> {
  let target: number | undefined;
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    const onward = connect(target ?? 0, "127.0.0.1");
    for (const [one, other] of [
      [socket, onward],
      [onward, socket],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
      one.pipe(other);
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    lead: ({ url }) => (target = Number(new URL(url).port)),
    [Symbol.asyncDispose]: async () => {
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, "close");
    },
  };
}

/** A rule that copies every push at once. */
const pushedTo = (name: string, url: string, more: object = {}) => ({
  replication: {
    registries: { [name]: { url } },
    rules: [
      {
        name,
        from: { registry: "self", repositories: ["team/*"] },
        to: [{ registry: name }],
        on: { push: true },
        ...more,
      },
    ],
  },
});

/** The newest push, where all have been looked at, and nothing is left to be copied. */
function rest(site: TestRegistry): unknown {
  const [row] = select(
    site,
    `SELECT (SELECT max(id) FROM events WHERE action = 'push' AND outcome = 'done') AS newest,
       (SELECT event_id FROM replication_cursor) AS seen,
       (SELECT count(*) FROM jobs WHERE kind LIKE 'copy:%' AND state IN ('queued', 'running')) AS left`,
  ) as { newest: number; seen: number; left: number }[];
  return row && row.seen >= row.newest && row.left === 0 ? row.newest : undefined;
}

test("two daemons that copy every push to each other come to rest with the last one, and no copy goes round", async () => {
  await using way = await startWay();
  await using west = await startRegistry({ config: pushedTo("east", way.url) });
  await using east = await startRegistry({ config: pushedTo("west", west.url), clock: skewed(-30_000) });
  way.lead(east);
  const name = "team/app";
  const signature = `${first.digest.replace(":", "-")}.sig`;
  for (const image of [first, second, third]) {
    await pushImage(west, name, image);
    await pushImage(east, name, image);
  }
  for (let round = 0; round < 5; round++) {
    const [here, there] = round % 2 === 0 ? [west, east] : [east, west];
    await Promise.all([pushImage(here, name, first, "1"), pushImage(there, name, second, "1")]);
    await pushImage(here, name, third, "2");
    await Promise.all([pushImage(here, name, second, signature), pushImage(there, name, third, signature)]);
  }
  await until(() => {
    const newest = rest(west);
    return newest !== undefined && rest(east) !== undefined && rest(west) === newest;
  }, "nothing is left to be copied");

  for (const tag of ["1", "2", signature]) {
    const state = await stateOf(west, `${name}:${tag}`);
    assert.ok(state);
    assert.deepEqual(await stateOf(east, `${name}:${tag}`), state);
  }
  const count = (site: TestRegistry, sql: string): number => Number(select(site, sql)[0]?.["n"]);
  const pushes = "SELECT count(*) AS n FROM events WHERE action = 'push' AND tag IS NOT NULL";
  const tags = count(west, pushes) + count(east, pushes);
  assert.ok(tags <= 2 * 25, `${tags} pushes of tags: each of 25 comes to the other side once at most`);
  const dead = "SELECT count(*) AS n FROM jobs WHERE state = 'dead'";
  assert.equal(count(west, dead) + count(east, dead), 0);
});
