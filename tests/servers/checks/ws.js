// npm's `ws` at both ends.

import assert from "node:assert/strict";
import { eventually, pause, within } from "../../clients/harness.js";
import { WebSocket } from "../packages.js";
import { at, overTls, tlsInFront } from "../place.js";
import { forged, token } from "../tokens.js";

/** A `ws` client that remembers what came. */
export class Client {
  constructor(url, protocols = [], options = {}) {
    this.messages = [];
    this.pings = 0;
    this.socket = new WebSocket(url, protocols, { perMessageDeflate: false, ...options });
    this.socket.on("message", (data, binary) => this.messages.push(binary ? data : data.toString()));
    this.socket.on("ping", () => (this.pings += 1));
    this.socket.on("pong", () => (this.ponged = true));
    this.opened = new Promise((resolve, reject) => {
      this.socket.on("open", resolve);
      this.socket.on("error", reject);
      this.socket.on("unexpected-response", (_, response) => {
        reject(Object.assign(new Error(`HTTP ${response.statusCode}`), { status: response.statusCode }));
      });
    });
    this.opened.catch(() => {});
    this.closed = new Promise((resolve) => {
      this.socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() }));
    });
  }

  async open() {
    await within(8_000, this.opened, "not open");
    return this;
  }

  next(what = "a message") {
    return eventually(() => this.messages.shift() ?? null, what);
  }

  close(milliseconds = 8_000) {
    return within(milliseconds, this.closed, "no close");
  }
}

const good = (subject, seconds) => `/ws?a=1&b=%20x&token=${token(subject, seconds)}`;

/** What the application saw of the handshake: the request target and each field as often as sent. */
async function handshake(place) {
  const headers = {
    origin: "https://app.example.com",
    cookie: "one=1; two=2",
    "x-custom": "kept",
    "user-agent": "a client/1.0",
    // A client that claims an identity, or to come from elsewhere.
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-proto": "https",
    "x-forwarded-user": "admin",
    x_forwarded_user: "admin",
    "remote-user": "admin",
    forwarded: "for=203.0.113.9",
  };
  const client = await new Client(place.url(good()), ["other", "echo.v1"], { headers }).open();
  assert.equal(client.socket.protocol, "echo.v1");
  const request = await place.app.saw("request");
  const values = (name) => request.headers.filter(([key]) => key === name).map(([, value]) => value);
  assert.equal(request.target.replace(/token=.*/, ""), "/ws?a=1&b=%20x&");
  assert.deepEqual(values("sec-websocket-protocol"), ["other,echo.v1"]);
  assert.deepEqual(values("origin"), ["https://app.example.com"]);
  assert.deepEqual(values("cookie"), ["one=1; two=2"]);
  assert.deepEqual([values("x-custom"), values("user-agent")], [["kept"], ["a client/1.0"]]);
  const host = (place.gateway ?? place.app).address;
  assert.deepEqual(values("host"), [host]);
  if (place.gateway) {
    assert.deepEqual(values("x-forwarded-for"), ["127.0.0.1"]);
    assert.deepEqual(values("x-real-ip"), ["127.0.0.1"]);
    assert.deepEqual(values("x-forwarded-proto"), [`http${place.gateway.secure}`]);
    assert.deepEqual(values("x-forwarded-host"), [host]);
    assert.deepEqual(values("x-forwarded-port"), [String(place.gateway.ports.plain)]);
    assert.equal(values("x-request-id").length, 1);
    for (const name of ["x-forwarded-user", "x_forwarded_user", "remote-user", "forwarded"]) {
      assert.deepEqual(values(name), [], name);
    }
  } else {
    assert.deepEqual(values("x-forwarded-user"), ["admin"]);
  }
  client.socket.close();
}

async function talks(place) {
  const client = await new Client(place.url(good())).open();
  for (const text of ["hello", "", "ü🚪", "x".repeat(2_000_000)]) {
    client.socket.send(text);
    await eventually(() => client.messages.length > 0, "an echo");
    assert.ok(client.messages.shift() === text);
  }
  const bytes = Buffer.alloc(200_000, 7);
  client.socket.send(bytes);
  assert.deepEqual(await client.next(), bytes);
  // In pieces, with a ping between.
  client.socket.send("in ", { fin: false });
  client.socket.ping("between");
  client.socket.send("pieces", { fin: true });
  assert.equal(await client.next(), "in pieces");
  await eventually(() => client.ponged, "a pong");
  for (let n = 0; n < 200; n += 1) client.socket.send(String(n));
  await eventually(() => client.messages.length === 200, "200 echoes");
  assert.deepEqual(client.messages.splice(0), Array.from({ length: 200 }, (_, n) => String(n)));
  await place.app.act("send", { text: "by itself" });
  assert.equal(await client.next(), "by itself");
  client.socket.close();
}

/** The server's own pings are answered, and reach the client. */
async function heartbeats(place) {
  const client = await new Client(place.url(good())).open();
  await eventually(() => client.pings >= 3, "three pings of the server");
  const pongs = async () => (await place.app.events("pong")).length >= 3;
  await eventually(pongs, "three pongs at the server");
  client.socket.close();
}

async function closes(place) {
  for (const [code, reason] of [[1000, ""], [1001, "going"], [3001, "ü"], [4999, "x".repeat(123)]]) {
    const client = await new Client(place.url(good())).open();
    client.socket.close(code, reason);
    await place.app.saw("close", (event) => event.code === code && event.reason === reason);
    assert.equal((await client.close()).code, code);
  }
  const empty = await new Client(place.url(good())).open();
  empty.socket.close();
  await place.app.saw("close", (event) => event.code === null);
  assert.deepEqual(await empty.close(), { code: 1005, reason: "" });
  for (const [code, reason] of [[1000, "bye"], [1001, ""], [1011, "oh"], [1012, ""], [4000, "enough"], ["", ""]]) {
    const client = await new Client(place.url(good())).open();
    await place.app.act("close", { code, reason });
    assert.deepEqual(await client.close(), { code: code || 1005, reason });
  }
}

/** Ends without a close frame, at either end. */
async function breaks(place) {
  const first = await new Client(place.url(good())).open();
  first.socket.terminate();
  await place.app.saw("end");
  const second = await new Client(place.url(good())).open();
  await place.app.act("terminate");
  const { code } = await second.close();
  assert.ok(place.gateway ? code !== 1000 : code === 1006, String(code));
  const third = await new Client(place.url(good())).open();
  third.socket.send("x".repeat(4 * 1024 * 1024 + 1));
  assert.equal((await third.close()).code, 1009, "the server's own limit");
}

async function restart(place) {
  const client = await new Client(place.url(good())).open();
  await place.app.stop();
  assert.deepEqual(await client.close(), { code: 1001, reason: "the server stops" });
  await place.app.begin();
  const again = async () => new Client(place.url(good())).open().catch(() => null);
  const back = await eventually(again, "the server is back", 15_000);
  back.socket.send("hello");
  assert.equal(await back.next(), "hello");
  back.socket.close();
}

async function refusals(place) {
  for (const target of ["/ws", `/ws?token=${forged()}`, good("alice", -60)]) {
    const error = await new Client(place.url(target)).open().catch((thrown) => thrown);
    assert.equal(error.status, 401);
  }
  const anyClient = await new Client(place.url("/open")).open();
  anyClient.socket.close();
}

/** The gateway's own words for a refusal: a message and a close. */
async function refusedThrough(place, target, code, reason) {
  const client = new Client(place.url(target));
  const close = await client.close();
  assert.deepEqual(close, { code, reason });
  assert.equal(JSON.parse(client.messages.at(-1)).reason, reason);
  return place.app.events();
}

async function compressed(place) {
  const options = { perMessageDeflate: true };
  const client = await new Client(place.url(good()), [], options).open();
  assert.match(client.socket.extensions, /permessage-deflate/);
  for (const text of ["x".repeat(100_000), "short"]) {
    client.socket.send(text);
    assert.ok((await client.next()) === text);
  }
  client.socket.close();
}

async function revoked(place) {
  const [alice, bob] = [await new Client(place.url(good("alice"))).open(), await new Client(place.url(good("bob"))).open()];
  const begun = Date.now();
  await place.gateway.revoke("alice");
  assert.equal((await alice.close()).reason, "token_revoked");
  assert.ok(Date.now() - begun < 1_500);
  const end = await place.app.saw("close");
  assert.equal(end.code, 1008);
  bob.socket.send("still here");
  assert.equal(await bob.next(), "still here");
  bob.socket.close();
}

export function wsChecks() {
  const wants = { app: "ws", route: { auth: "handshake" } };
  const judged = { app: "ws", route: { auth: "jwt", authLines: 'carriers = ["query:token"]' } };
  const run = (name, body, where = wants, only = undefined) => at(where, `ws: ${name}`, body, only);
  const deflate = { app: "ws", route: { ...judged.route, routeLines: 'compression = "pass"' } };
  const explained = (name, target, reason) =>
    run(
      name,
      async (place) => {
        const events = await refusedThrough(place, target, 4401, reason);
        assert.deepEqual(events, [], "the application hears nothing of it");
      },
      judged,
      "gateway",
    );
  return [
    run("the handshake arrives", handshake),
    run("talks", talks),
    run("talks over TLS", talks, overTls(wants)),
    run("the handshake arrives from TLS", handshake, tlsInFront(wants), "gateway"),
    run("heartbeats of the server", heartbeats),
    run("close codes both ways", closes),
    run("broken connections", breaks),
    run("a restart of the server", restart),
    run("permessage-deflate", compressed, deflate, "direct"),
    run("permessage-deflate end to end", compressed, deflate, "later"),
    run("refusals before the 101", refusals, wants, "direct"),
    run("the application's refusal is explained", (place) => refusedThrough(place, "/ws", 4401, "token_bad_signature"), wants, "gateway"),
    explained("no token", "/ws", "token_missing"),
    explained("a forged token", `/ws?token=${forged()}`, "token_bad_signature"),
    explained("an expired token", good("alice", -60), "token_expired"),
    run("talks behind the gateway's own decision", talks, judged, "gateway"),
    run("a revoked user", revoked, judged, "gateway"),
    run(
      "a token that expires",
      async (place) => {
        const client = await new Client(place.url(good("alice", 3))).open();
        assert.equal((await client.close()).reason, "token_expired");
        assert.equal((await place.app.saw("close")).code, 1008);
      },
      judged,
      "gateway",
    ),
    run(
      "a client that the application accepts without a token stays",
      async (place) => {
        const client = await new Client(place.url("/open")).open();
        // Longer than deadlines.authenticate, which is for strangers.
        await pause(6_000);
        client.socket.send("hello");
        assert.equal(await client.next(), "hello");
        client.socket.close();
      },
      wants,
      "gateway",
    ),
  ];
}
