import assert from "node:assert/strict";
import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import { run } from "./machine.ts";

const PROJECT = join(import.meta.dirname, "../..");

interface Service {
  image: string;
  read_only?: boolean;
  healthcheck?: { test: string[] };
  profiles?: string[];
  volumes?: string[];
}

/** What docker-compose makes of the file, services of every profile included. */
async function readServices(): Promise<Record<string, Service>> {
  const file = join(PROJECT, "compose.yaml");
  const { services } = parse(await run("docker-compose", ["--file", file, "--profile", "monitoring", "config"])) as {
    services: Record<string, Service>;
  };
  return services;
}

test("compose.yaml starts the mirror alone, and with the profile monitoring what watches it", async () => {
  const services = await readServices();
  const profiles = Object.entries(services).map(([name, service]) => [name, service.profiles]);
  assert.deepEqual(Object.fromEntries(profiles), {
    mirror: undefined,
    prometheus: ["monitoring"],
    grafana: ["monitoring"],
  });
  for (const [name, { image }] of Object.entries(services))
    assert.match(image, /:v?\d+\.\d+\.\d+$/, `${name} runs a version that is pinned`);
  const { version } = JSON.parse(await readFile(join(PROJECT, "package.json"), "utf8")) as { version: string };
  assert.equal(services["mirror"]?.image, `entrepot:${version}`);
  assert.equal(services["mirror"]?.read_only, true);
});

test("every file that compose.yaml mounts is there, and what Grafana is told to read is mounted", async () => {
  const services = await readServices();
  const mounts = Object.values(services).flatMap(({ volumes = [] }) => volumes.map((volume) => volume.split(":")));
  const files = mounts.filter(([source = ""]) => source.startsWith("/"));
  assert.ok(files.length >= 4);
  for (const [source = ""] of files) await access(source);

  const read = async (path: string): Promise<unknown> => parse(await readFile(join(PROJECT, "grafana", path), "utf8"));
  const { providers } = (await read("provisioning/dashboards/entrepot.yml")) as {
    providers: { options: { path: string } }[];
  };
  for (const { options } of providers) assert.ok(files.some(([, target]) => target === options.path));
  const { datasources } = (await read("provisioning/datasources/prometheus.yml")) as { datasources: { url: string }[] };
  for (const { url } of datasources) assert.ok(Object.hasOwn(services, new URL(url).hostname));
  const { scrape_configs: jobs } = (await read("prometheus.yml")) as {
    scrape_configs: { static_configs: { targets: string[] }[] }[];
  };
  const targets = jobs.flatMap((job) => job.static_configs.flatMap((group) => group.targets));
  assert.deepEqual(targets, ["mirror:5000"]);
});

test("the mirror's check in compose.yaml is the image's own", async () => {
  const { mirror } = await readServices();
  const dockerfile = await readFile(join(PROJECT, "Dockerfile"), "utf8");
  const own = JSON.parse(/^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$/m.exec(dockerfile)?.[1] ?? "[]") as string[];
  assert.deepEqual(mirror?.healthcheck?.test, ["CMD", ...own]);
});
