import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { Denials, PER_ACTION, PER_ADDRESS } from "../../src/events/denials.ts";
import type { NewEvent } from "../../src/events/event.ts";
import type { RepositoryName, Tag } from "../../src/oci/reference.ts";

interface Given {
  action?: "pull" | "push" | "login";
  repository?: string;
  subject?: string;
  tag?: string;
  actor?: string | undefined;
  address?: string;
}

function denial({ action = "pull", repository, subject, tag, actor, address = "192.0.2.1" }: Given): NewEvent {
  return {
    action,
    outcome: "denied",
    ...(repository === undefined ? {} : { repository: repository as RepositoryName }),
    ...(subject === undefined ? {} : { subject }),
    ...(tag === undefined ? {} : { tag: tag as Tag }),
    by: { actor, address, agent: undefined, requestId: "r-1" },
    detail: "log in",
  };
}

test("a pull of the same repository by the same client is recorded once, whatever it asks for of it", () => {
  const denials = new Denials();
  const pull = { repository: "team/app" };
  assert.ok(denials.take(denial({ ...pull, tag: "1" })));
  assert.ok(!denials.take(denial({ ...pull, tag: "2" })));
  for (const other of [{ repository: "team/b" }, { ...pull, actor: "ci" }, { ...pull, address: "192.0.2.2" }])
    assert.ok(denials.take(denial(other)), JSON.stringify(other));
  const [sum, ...none] = denials.sums();
  assert.deepEqual(none, []);
  assert.deepEqual(sum, { ...denial({ ...pull, tag: "2" }), detail: "log in (the last of 1 more within a minute)" });
});

test("pushes of two tags are two denials, and so are logins as two users", () => {
  const denials = new Denials();
  for (const tag of ["1", "2"]) assert.ok(denials.take(denial({ action: "push", repository: "team/app", tag })));
  for (const subject of ["user:a", "user:b"]) assert.ok(denials.take(denial({ action: "login", subject })));
  assert.deepEqual(denials.sums(), []);
  assert.ok(denials.isEmpty);
});

test("a crawler has an event for each of its first repositories, and one for all others", () => {
  const denials = new Denials();
  const asked = Array.from({ length: 1000 }, (_, i) => denials.take(denial({ repository: `team/app-${i}` })));
  assert.equal(asked.filter(Boolean).length, PER_ADDRESS);
  assert.ok(denials.take(denial({ action: "login", subject: "user:a" })), "its logins are another matter");
  assert.ok(denials.take(denial({ repository: "team/app-999", address: "192.0.2.2" })), "and so are others");
  const [sum, ...none] = denials.sums();
  assert.deepEqual(none, []);
  assert.deepEqual(sum?.by, { actor: undefined, address: "192.0.2.1", agent: undefined, requestId: "r-1" });
  assert.equal(sum?.repository, undefined);
  assert.match(sum?.detail ?? "", /^980 more denials within a minute from this address/);
  assert.ok(denials.take(denial({ repository: "team/app-1" })), "the next minute begins anew");
});

test("many addresses together have so many events of an action, and one for all others", () => {
  const denials = new Denials();
  const from = (i: number): string => `198.51.${Math.floor(i / 250)}.${i % 250}`;
  const asked = Array.from({ length: 5000 }, (_, i) =>
    denials.take(denial({ repository: "team/app", address: from(i) })),
  );
  assert.equal(asked.filter(Boolean).length, PER_ACTION);
  assert.ok(denials.take(denial({ action: "login", subject: "user:a" })), "logins have events of their own");
  const [sum, ...none] = denials.sums();
  assert.deepEqual(none, []);
  assert.deepEqual(sum?.by, { actor: "journal" });
  assert.match(sum?.detail ?? "", /^4800 more denials within a minute from many addresses/);
});

test("what goes on for hours is one event a minute", () => {
  const denials = new Denials();
  let recorded = 0;
  for (let minute = 0; minute < 60; minute++) {
    for (let i = 0; i < 100; i++) if (denials.take(denial({ repository: "team/app" }))) recorded++;
    recorded += denials.sums().length;
  }
  assert.equal(recorded, 61);
  assert.deepEqual(denials.sums(), []);
  assert.ok(denials.isEmpty, "and nothing is remembered of it once it has ended");
});

test("whoever is denied whatever, each denial is recorded or counted, and no minute has more events than there may be", () => {
  const given = fc.record({
    action: fc.constantFrom("pull" as const, "login" as const),
    repository: fc.nat(30).map((i) => `team/app-${i}`),
    address: fc.nat(300).map((i) => `198.51.100.${i}`),
    actor: fc.constantFrom(undefined, "ci"),
  });
  const more = (event: NewEvent): number => Number(/(\d+) more/.exec(event.detail ?? "")?.[1] ?? Number.NaN);
  fc.assert(
    fc.property(fc.array(fc.array(given, { maxLength: 600 }), { maxLength: 4 }), (minutes) => {
      const denials = new Denials();
      let counted = 0;
      for (const minute of [...minutes, []]) {
        const alone = minute.map(denial).filter((event) => denials.take(event)).length;
        const sums = denials.sums();
        counted += alone + sums.reduce((total, event) => total + more(event), 0);
        assert.ok(alone <= 2 * PER_ACTION);
        assert.ok(sums.length <= 2 * (PER_ACTION + PER_ACTION / PER_ADDRESS + 1), `${sums.length} sums`);
      }
      assert.equal(counted, minutes.flat().length);
    }),
    { numRuns: 100 },
  );
});
