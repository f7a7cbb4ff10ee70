import assert from "node:assert/strict";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { makeImage, makeIndex } from "../kit/images.ts";
import { startRegistry, type TestRegistry } from "../kit/registry.ts";
import {
  blobEntry,
  imageEntries,
  importBy,
  layoutEntries,
  makeFolder,
  makeTar,
  NAMED,
  soundEntries,
  type MadeEntry,
} from "./archives.ts";

const image = makeImage({ layers: [70_000, 2000], seed: "hostile" });
const layer = image.layers[0] ?? assert.fail();
const layerName = blobEntry(layer.digest, Buffer.alloc(0)).name;
const sound = soundEntries(image);

/** Every import here is refused, and leaves no tag, no file of an upload and no session. */
async function assertRefused(registry: TestRegistry, archive: Buffer, message: RegExp, ...as: string[]): Promise<void> {
  await using folder = await makeFolder();
  const file = join(folder.path, "archive.tar");
  await writeFile(file, archive);
  await assert.rejects(importBy(registry, file, ...as), (error: Error) => {
    assert.match(error.message, message);
    assert.ok(error.message.length < 4000, `a message of ${error.message.length} characters`);
    return true;
  });
  assert.deepEqual(await readdir(join(registry.root, "uploads")), []);
  assert.deepEqual(await readdir(folder.path), ["archive.tar"]);
  const { status } = await registry.get("/v2/team/app/manifests/1");
  assert.equal(status, 404);
}

function start(): Promise<TestRegistry> {
  return startRegistry({ config: { hosted: { namespaces: ["team"] } } });
}

/** The sound archive with one entry in place of another. */
function replaced(name: string, entry: MadeEntry): Buffer {
  return makeTar(sound.map((one) => (one.name === name ? entry : one)));
}

test("paths that lead elsewhere, links, devices and sparse files are refused by name", async () => {
  await using registry = await start();
  for (const [entry, message] of [
    [{ name: "../../etc/passwd", body: "x" }, /"\.\.\/\.\.\/etc\/passwd": a path that leads out/],
    [{ name: "blobs/../../x", body: "x" }, /a path that leads out/],
    [{ name: "/etc/passwd", body: "x" }, /"\/etc\/passwd": a path that leads out/],
    [{ name: "blobs\\..\\x", body: "x" }, /a path that leads out/],
    [{ name: layerName, type: "1", link: "/etc/passwd" }, /is a hard link/],
    [{ name: layerName, type: "2", link: "/etc/passwd" }, /is a symbolic link/],
    [{ name: "blobs/null", type: "3" }, /"blobs\/null" is a device/],
    [{ name: "blobs/disk", type: "4" }, /is a device/],
    [{ name: "blobs/pipe", type: "6" }, /is a pipe/],
    [{ name: layerName, type: "S" }, /is a sparse file/],
    [{ name: layerName, type: "?" }, /unknown type "\?"/],
  ] as const) {
    await assertRefused(registry, makeTar([...sound.filter(({ name }) => name !== entry.name), entry]), message);
  }
});

test("a name that comes twice is refused, whatever its spelling", async () => {
  await using registry = await start();
  await assertRefused(registry, makeTar([...sound, ...sound.slice(0, 2)]), /"oci-layout" is in the tar twice/);
  const again = { name: `./${layerName}`, body: layer.bytes };
  await assertRefused(registry, makeTar([...sound, again]), new RegExp(`${layerName}" is in the tar twice`));
});

test("an archive that is cut short is refused wherever the cut is", async () => {
  await using registry = await start();
  const whole = makeTar(sound);
  for (const bytes of [100, 512, 700, 5000, 20_000, whole.length - 1024, whole.length - 1100])
    await assertRefused(registry, whole.subarray(0, bytes), /cut short|no tar|is missing/);
  const zipped = gzipSync(whole);
  await assertRefused(registry, zipped.subarray(0, zipped.length >> 1), /gzip file is damaged or cut short/);
  await assertRefused(registry, Buffer.alloc(0), /no tar/);
});

test("an entry that announces more than there is, or no number, is refused", async () => {
  await using registry = await start();
  const huge = Buffer.concat([Buffer.of(0x80), Buffer.alloc(7), Buffer.from("00ffffffff", "hex")]).subarray(0, 12);
  await assertRefused(registry, replaced(layerName, { name: layerName, sizeField: huge }), /cut short: it ends within/);
  const absurd = Buffer.alloc(12, 0xff);
  for (const sizeField of [absurd, "99999999999\0", "-0000000001\0"])
    await assertRefused(registry, replaced(layerName, { name: layerName, sizeField }), /damaged behind/);
});

test("absurd headers are refused before their content is read", async () => {
  await using registry = await start();
  const pax = (body: string | Buffer, type = "x"): Buffer => makeTar([{ name: "pax", type, body }, ...sound]);
  await assertRefused(registry, pax(Buffer.alloc(100_000, "a")), /a header of 100000 bytes/);
  await assertRefused(registry, pax("9999 path=x\n"), /damaged pax header/);
  await assertRefused(registry, pax("0 path=x\n"), /damaged pax header/);
  await assertRefused(registry, pax("12 path=../x\n"), /damaged pax header|leads out/);
  await assertRefused(registry, pax("13 path=../x\n"), /"\.\.\/x": a path that leads out/);
  await assertRefused(registry, pax("28 size=9007199254740993000\n"), /a size that is none/);
  await assertRefused(registry, pax("22 GNU.sparse.major=1\n"), /sparse files/);
  await assertRefused(registry, pax("10 size=4\n", "g"), /global pax header/);
  await assertRefused(
    registry,
    makeTar([{ name: "x", type: "L", body: "a/../../b\0" }, ...sound]),
    /a path that leads out/,
  );
});

test("what is no OCI image layout says what it is instead", async () => {
  await using registry = await start();
  await assertRefused(registry, Buffer.alloc(4096, "text"), /this is no tar/);
  await assertRefused(registry, Buffer.alloc(4096), /the tar is empty/);
  await assertRefused(registry, Buffer.concat([Buffer.from("28b52ffd", "hex"), Buffer.alloc(4096, 1)]), /zstd -d/);
  await assertRefused(registry, makeTar(imageEntries(image)), /no index\.json, so it is no OCI image layout/);
  await assertRefused(
    registry,
    makeTar([{ name: "manifest.json", body: "[]" }, ...imageEntries(image)]),
    /older kind that docker saves.*skopeo copy/,
  );
  await assertRefused(registry, replaced("oci-layout", { name: "oci-layout", body: "{}" }), /versions 1\.x/);
  await assertRefused(registry, replaced("oci-layout", { name: "oci-layout", body: "" }), /oci-layout is not JSON/);
  const large = { name: "index.json", body: Buffer.alloc(100 * 1024 * 1024, " ") };
  await assertRefused(registry, replaced("index.json", large), /index\.json has 104857600 bytes, more than/);
  await assertRefused(
    registry,
    replaced("index.json", { name: "index.json", body: "[1]" }),
    /index\.json: .*JSON object/,
  );
  await assertRefused(registry, makeTar(layoutEntries([])), /names none/);
});

test("contents that are missing, damaged or of another size are named", async () => {
  await using registry = await start();
  await assertRefused(
    registry,
    makeTar(sound.filter(({ name }) => name !== layerName)),
    new RegExp(`${layerName} is missing`),
  );
  const wrong = Buffer.from(layer.bytes);
  wrong[wrong.length - 1] = (wrong.at(-1) ?? 0) ^ 1;
  await assertRefused(
    registry,
    replaced(layerName, { name: layerName, body: wrong }),
    new RegExp(`${layerName} is damaged`),
  );
  const longer = Buffer.concat([layer.bytes, Buffer.of(0)]);
  await assertRefused(
    registry,
    replaced(layerName, { name: layerName, body: longer }),
    new RegExp(`${layerName} has 70001 bytes, but 70000 are announced`),
  );
  const manifestName = blobEntry(image.digest, image.manifest).name;
  const altered = Buffer.from(image.manifest.toString().replace("70000", "70001"));
  await assertRefused(registry, replaced(manifestName, { name: manifestName, body: altered }), /is damaged/);
});

test("an image without a name is listed with the way to give it one, and a name is not given twice", async () => {
  await using registry = await start();
  const other = makeImage({ layers: [100], seed: "other" });
  const bare = { "org.opencontainers.image.ref.name": "latest" };
  const port = { "io.containerd.image.name": "localhost:5000/team/app:1" };
  const one = (annotations: Record<string, string>): Buffer =>
    makeTar([...layoutEntries([{ image, annotations }]), ...imageEntries(image)]);
  await assertRefused(registry, one(bare), /does not say in which repository to put latest: .*--as REPOSITORY:TAG/);
  await assertRefused(registry, one({}), new RegExp(`to put ${image.digest}`));
  await assertRefused(registry, one(port), /to put localhost:5000\/team\/app:1/);
  await assertRefused(registry, one({ "io.containerd.image.name": "../../x:1" }), /to put \.\.\/\.\.\/x:1/);
  const both = makeTar([
    ...layoutEntries([
      { image, annotations: NAMED },
      { image: other, annotations: bare },
    ]),
    ...imageEntries(image),
    ...imageEntries(other),
  ]);
  await assertRefused(registry, both, /to put latest: say it with --as NAME=REPOSITORY:TAG/);
  await assertRefused(registry, both, /has 2 images .*--as NAME=/, "team/app:2");
  await assertRefused(registry, both, /no image team\/none:1: it has/, "team/none:1=team/x:1", "latest=team/y:1");
  await assertRefused(registry, both, /team\/app:1 would be/, "latest=team/app:1");
  await assertRefused(registry, one(NAMED), /--as ¿: write/, "¿");
});

test("indexes that lie in each other a thousand deep end in an error", async () => {
  await using registry = await start();
  let inner = makeIndex([[{ os: "linux", architecture: "amd64" }, image]]);
  const entries = [...imageEntries(image), blobEntry(inner.digest, inner.manifest)];
  for (let depth = 0; depth < 1000; depth++) {
    inner = makeIndex([
      [
        { os: "linux", architecture: "amd64" },
        { ...image, ...inner },
      ],
    ]);
    entries.push(blobEntry(inner.digest, inner.manifest));
  }
  await assertRefused(
    registry,
    makeTar([...layoutEntries([{ image: inner, annotations: NAMED }]), ...entries]),
    /indexes lie in each other/,
  );
});
