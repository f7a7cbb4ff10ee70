import assert from "node:assert/strict";
import { connect } from "node:net";
import { test } from "node:test";
import * as fc from "fast-check";
import { acceptsRealm, Guard, reachOf } from "../../src/remote/guard.ts";
import { RemoteError } from "../../src/remote/remote-error.ts";
import { fault } from "./remotes.ts";

function guard(url: string, more: Partial<ConstructorParameters<typeof Guard>[0]> = {}): Guard {
  return new Guard({ url, realms: [], trustedHosts: [], allowPrivate: false, ...more });
}

test("addresses inside are told from those outside, whatever they are wrapped in", () => {
  const inside = [
    ..."0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.1.1 172.16.0.1 172.31.255.255 192.168.0.1 198.18.0.1 224.0.0.1".split(
      " ",
    ),
    ..."240.0.0.1 255.255.255.255 :: ::1 fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1 ::ffff:127.0.0.1 ::ffff:a00:1".split(
      " ",
    ),
    ..."::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1::1 2001:0:1::1 2001:db8::1 100::1".split(
      " ",
    ),
  ];
  for (const address of inside) assert.equal(reachOf(address), "private", address);
  const outside = [
    ..."1.1.1.1 100.128.0.1 172.32.0.1 192.169.0.1 223.255.255.255 2606:4700::1111 2a00:1450::1 ::ffff:1.1.1.1".split(
      " ",
    ),
    ..."64:ff9b::1.1.1.1 2002:101:101::1 2001:4860:4860::8888".split(" "),
  ];
  for (const address of outside) assert.equal(reachOf(address), "public", address);
  const metadata = "169.254.169.254 fd00:ec2::254 fd00:0ec2:0:0::254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe".split(
    " ",
  );
  for (const address of metadata) assert.equal(reachOf(address), "metadata", address);
});

test("an IPv4 address reaches as far within IPv6 as by itself", () => {
  fc.assert(
    fc.property(fc.ipV4(), (address) => {
      assert.equal(reachOf(`::ffff:${address}`), reachOf(address));
      assert.equal(reachOf(`64:ff9b::${address}`), reachOf(address));
    }),
  );
});

test("a configured registry may be inside if its name says so, or its configuration", () => {
  for (const url of ["http://10.0.0.1:5000", "http://[fd12::1]:5000", "http://localhost:5000", "http://[::1]"]) {
    guard(url).checkUrl(new URL(url));
  }
  guard("https://registry.example.com").checkUrl(new URL("https://cdn.example.com/x"));
});

test("literal addresses inside are refused, however they are spelled", () => {
  const outside = guard("https://registry.example.com", { allowPrivate: true });
  for (const host of [
    "127.0.0.1",
    "2130706433",
    "0x7f.1",
    "127.1",
    "[::1]",
    "[::ffff:10.0.0.1]",
    "localhost",
    "a.localhost.",
    "10.0.0.1.",
  ]) {
    assert.throws(
      () => outside.checkUrl(new URL(`https://${host}/`)),
      fault("refused", /private address .*trustedHosts/),
      host,
    );
  }
  guard("https://registry.example.com", { trustedHosts: ["10.0.*"] }).checkUrl(new URL("https://10.0.0.1/"));
});

test("the metadata service is never asked unless it is the configured registry itself", () => {
  const lenient = guard("http://registry:5000", { trustedHosts: ["*"], allowPrivate: true });
  for (const host of ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"]) {
    assert.throws(() => lenient.checkUrl(new URL(`http://${host}/latest/meta-data`)), fault("refused", /metadata/));
  }
  guard("http://169.254.169.254").checkUrl(new URL("http://169.254.169.254/v2/"));
});

async function connectError(hostname: string, under: Guard): Promise<Error> {
  const socket = connect({ host: hostname, port: 1, lookup: under.lookup });
  return await new Promise<Error>((resolve) => socket.once("error", resolve));
}

test("a name is judged by what it resolves to when it is dialled", async () => {
  const refusal = await connectError("localhost", guard("https://registry.example.com"));
  assert.ok(refusal instanceof RemoteError);
  assert.equal(refusal.fault, "refused");
  for (const permitted of [
    guard("https://registry.example.com", { trustedHosts: ["local*"] }),
    guard("http://localhost:5000"),
    guard("https://registry.example.com", { realms: ["localhost:5000"] }),
  ]) {
    const error = await connectError("localhost", permitted);
    assert.ok(!(error instanceof RemoteError), String(error));
  }
});

test("a token realm has to be the registry's own host, its domain, or listed", () => {
  const accepts = (endpoint: string, realm: string, listed: string[] = []): boolean =>
    acceptsRealm(new URL(endpoint), new URL(realm), listed);
  assert.ok(accepts("https://registry-1.docker.io", "https://auth.docker.io/token"));
  assert.ok(accepts("https://r.example.co.uk", "https://auth.example.co.uk"));
  assert.ok(accepts("http://127.0.0.1:5000", "http://127.0.0.1:5000/token"));
  assert.ok(accepts("http://registry:5000", "https://registry:5000/token"));
  assert.ok(accepts("https://registry.example.com", "https://login.other.com", ["login.other.com"]));
  assert.ok(accepts("https://registry.example.com", "https://login.other.com", ["login.other.com:443"]));
  assert.ok(accepts("http://a.registry.lan", "http://auth.registry.lan:8080/token"));

  assert.ok(!accepts("https://registry.example.com", "http://registry.example.com/token"), "plain http");
  assert.ok(!accepts("https://registry.example.com", "https://login.other.com:8443", ["login.other.com"]));
  assert.ok(!accepts("https://registry.example.com", "https://example.com.evil.net"));
  assert.ok(!accepts("https://a.github.io", "https://b.github.io"), "tenants of one suffix are strangers");
  assert.ok(!accepts("https://a.co.uk", "https://b.co.uk"));
  assert.ok(!accepts("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"));
  assert.ok(!accepts("http://registry:5000", "http://registry:5001"));
  assert.ok(!accepts("https://registry.example.com", "https://169.254.169.254/"));
  assert.ok(!accepts("http://registry.example.com", "ftp://registry.example.com"));
});
