// @rails/actioncable against Action Cable on puma.

import assert from "node:assert/strict";
import { eventually, pause, within } from "../../clients/harness.js";
import { WebSocket, packages } from "../packages.js";
import { at, overTls, tlsInFront } from "../place.js";
import { forged, token } from "../tokens.js";

// What the library takes from a browser.
globalThis.addEventListener ??= () => {};
globalThis.removeEventListener ??= () => {};
globalThis.document ??= { visibilityState: "visible" };

const cable = packages("@rails/actioncable");

// The sockets of a consumer carry what a browser would send for its page: a cookie and an Origin.
// A parameter of the URL says which.
cable.adapters.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    const { cookie, origin } = PAGES.get(new URL(url).searchParams.get("page"));
    super(url, protocols, { headers: cookie ? { cookie } : {}, origin });
    SOCKETS.get(new URL(url).searchParams.get("page")).push(this);
  }

  // The library throws at a message that is not Action Cable's. A browser goes on after that.
  set onmessage(handler) {
    super.onmessage = (event) => {
      try {
        handler(event);
      } catch (error) {
        if (!(error instanceof TypeError)) throw error;
      }
    };
  }

  get onmessage() {
    return super.onmessage;
  }
};
const PAGES = new Map();
const SOCKETS = new Map();

class Client {
  constructor(place, { value = token(), origin = place.url("", "http"), room = "lobby" } = {}) {
    const page = String(PAGES.size + 1);
    PAGES.set(page, { origin, cookie: value === null ? null : `theme=dark; token=${value}` });
    SOCKETS.set(page, []);
    Object.assign(this, { page, connects: 0, disconnects: [], received: [], texts: [], rejected: 0 });
    this.consumer = cable.createConsumer(place.url(`/cable?page=${page}`));
    this.subscription = this.consumer.subscriptions.create(
      { channel: "EchoChannel", room },
      {
        connected: () => (this.connects += 1),
        disconnected: (details) => this.disconnects.push(details),
        rejected: () => (this.rejected += 1),
        received: (data) => this.received.push(data),
      },
    );
  }

  get sockets() {
    return SOCKETS.get(this.page);
  }

  async connected(times = 1, milliseconds = 15_000) {
    await eventually(() => this.connects >= times, `connected ${times} times`, milliseconds);
    return this;
  }

  next() {
    return eventually(() => this.received.shift(), "a message", 8_000);
  }

  end() {
    this.consumer.disconnect();
  }
}

async function talks(place, options) {
  const client = await new Client(place, options).connected();
  assert.equal(client.sockets[0].protocol, "actioncable-v1-json");
  let pings = 0;
  client.sockets[0].addEventListener("message", ({ data }) => (pings += data.includes('"ping"') ? 1 : 0));
  for (const text of ["hello", "ü🚪", "x".repeat(100_000)]) {
    client.subscription.perform("echo", { text });
    assert.deepEqual(await client.next(), { text });
  }
  await place.app.act("broadcast", { text: "to all" });
  assert.deepEqual(await client.next(), { text: "to all" });
  const request = await place.app.saw("request");
  const values = (name) => request.headers.filter(([key]) => key === name).map(([, value]) => value);
  assert.deepEqual(values("origin"), [options?.origin ?? place.url("", "http")]);
  assert.match(values("cookie")[0], /^theme=dark; token=/);
  // A ping each 3 s, without which the client opens a new socket after 6 s.
  await eventually(() => pings >= 3, "three pings", 12_000);
  assert.deepEqual([client.connects, client.disconnects], [1, []]);
  client.end();
  // The client sends no code, which Rails' library takes for 1000.
  assert.equal((await place.app.saw("close")).code, 1000);
}

async function rejected(place) {
  const client = new Client(place, { room: "closed" });
  await eventually(() => client.rejected === 1, "a rejected subscription", 15_000);
  assert.deepEqual(client.disconnects, []);
  client.end();
}

/** Rails accepts every client, and says by message that it does not want a client. */
async function unauthorized(place, value) {
  const client = new Client(place, { value });
  const texts = [];
  await eventually(() => client.sockets.length > 0, "a socket");
  client.sockets[0].addEventListener("message", ({ data }) => texts.push(JSON.parse(data)));
  await eventually(() => client.disconnects.length > 0, "the refusal", 15_000);
  assert.deepEqual(texts, [{ type: "disconnect", reason: "unauthorized", reconnect: false }]);
  assert.deepEqual(client.disconnects, [{ willAttemptReconnect: false }]);
  await pause(1_500);
  assert.equal(client.sockets.length, 1, "it stays away");
  client.end();
}

/** The same words with the gateway's reason, of which the application hears nothing. */
async function refusedThrough(place, value, reason) {
  const client = new Client(place, { value });
  const texts = [];
  await eventually(() => client.sockets.length > 0, "a socket");
  client.sockets[0].addEventListener("message", ({ data }) => texts.push(JSON.parse(data)));
  await eventually(() => client.disconnects.length > 0, "the refusal", 15_000);
  assert.deepEqual(texts, [{ type: "disconnect", reason, reconnect: false }]);
  await pause(1_500);
  assert.equal(client.sockets.length, 1, "it stays away");
  assert.deepEqual(await place.app.events("request"), []);
  client.end();
}

async function closes(place) {
  const client = await new Client(place).connected();
  const closed = (socket) => new Promise((resolve) => socket.addEventListener("close", resolve));
  const first = closed(client.sockets[0]);
  await place.app.act("close", { code: 4001, reason: "bye" });
  const { code, reason } = await within(5_000, first, "no close");
  assert.deepEqual([code, reason], [4001, "bye"]);
  assert.deepEqual(client.disconnects, [{ willAttemptReconnect: true }]);
  // The client paces itself: six seconds and more.
  await client.connected(2, 20_000);
  const second = closed(client.sockets[1]);
  await place.app.act("restart");
  assert.equal((await within(5_000, second, "no close")).code, 1000);
  assert.equal(client.disconnects.length, 2);
  client.end();
  const other = await new Client(place).connected();
  other.sockets[0].close(4002, "mine");
  const close = await place.app.saw("close", (event) => event.code === 4002);
  assert.equal(close.reason, "mine");
  other.end();
}

async function restart(place) {
  const client = await new Client(place).connected();
  await place.app.stop();
  await eventually(() => client.disconnects.length === 1, "a disconnect");
  await place.app.begin();
  await client.connected(2, 30_000);
  client.subscription.perform("echo", { text: "again" });
  assert.deepEqual(await client.next(), { text: "again" });
  client.end();
}

/** Rails compares Origin with its Host: 404. */
async function otherOrigin(place) {
  const socket = new WebSocket(place.url("/cable"), "actioncable-v1-json", { origin: "https://evil.example.com" });
  const status = new Promise((resolve) => {
    socket.on("unexpected-response", (_, { statusCode }) => resolve(statusCode));
  });
  socket.on("error", () => {});
  assert.equal(await within(8_000, status, "no answer"), 404);
  socket.terminate();
}

export function cableChecks() {
  const wants = { app: "cable", route: { auth: "message", authLines: 'preset = "actioncable"\naccepted_topics = ["*"]' } };
  const judged = { app: "cable", route: { auth: "jwt", authLines: 'carriers = ["cookie:token"]' } };
  const run = (name, body, where = wants, only = undefined) => at(where, `Action Cable: ${name}`, body, only);
  return [
    run("talks, pings of the server", talks),
    run("talks over TLS", talks, overTls(wants)),
    run("talks over TLS up to the gateway", talks, tlsInFront(wants), "gateway"),
    run("a page of the configured list", (place) => talks(place, { origin: "https://app.example.com" })),
    run("a rejected subscription", rejected),
    run("close codes both ways", closes),
    run("a restart of the server", restart),
    run("a refusal in Rails' own words", (place) => unauthorized(place, null)),
    run("an origin of another host", otherOrigin, wants, "direct"),
    run("talks behind the gateway's own decision", talks, judged, "gateway"),
    // Action Cable's client throws at the message of the plain dialect, and returns after its close:
    // these need `dialect = "actioncable"`.
    run("no token", (place) => refusedThrough(place, null, "token_missing"), judged, "later"),
    run("a forged token", (place) => refusedThrough(place, forged(), "token_bad_signature"), judged, "later"),
    run("an expired token", (place) => refusedThrough(place, token("alice", -60), "token_expired"), judged, "later"),
    run(
      "a revoked user",
      async (place) => {
        const client = await new Client(place).connected();
        await place.gateway.revoke("alice");
        await eventually(() => client.disconnects.length === 1, "a disconnect");
        assert.deepEqual(client.disconnects, [{ willAttemptReconnect: false }]);
        await place.app.saw("end");
        client.end();
      },
      judged,
      "later",
    ),
  ];
}
