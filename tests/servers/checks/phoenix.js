// phoenix.js in three versions against the stand-in for Phoenix, in Node.

import assert from "node:assert/strict";
import { eventually, pause, within } from "../../clients/harness.js";
import { ACCEPTED_WITHIN_MS } from "../gateway.js";
import { WebSocket, packages } from "../packages.js";
import { at, overTls, tlsInFront } from "../place.js";
import { forged, token } from "../tokens.js";

const CLIENTS = [
  { client: "1.7.21", server: { version: "1.7", adapter: "cowboy" }, paramsOnly: true },
  { client: "1.8.15", server: { version: "1.8", adapter: "bandit", authToken: true } },
  { client: "1.8.16", server: { version: "1.8", adapter: "bandit", authToken: true } },
  { client: "1.8.16", server: { version: "1.8", adapter: "cowboy", authToken: true } },
];

/** A phoenix.js socket that remembers what happened to it. */
export class Client {
  constructor(version, place, { token: value, paramsOnly = true, ...options } = {}) {
    const { Socket } = packages(`phoenix-${version}`);
    this.opens = 0;
    this.closes = [];
    const params = value === undefined ? {} : { token: value };
    const given = paramsOnly ? { params } : { authToken: value };
    this.socket = new Socket(place.url("/socket"), { transport: WebSocket, ...given, ...options });
    this.socket.onOpen(() => (this.opens += 1));
    this.socket.onClose(({ code, reason }) => this.closes.push({ code, reason: String(reason) }));
    this.socket.onError(() => {});
    this.socket.connect();
  }

  async opened(times = 1, milliseconds = 8_000) {
    await eventually(() => this.opens >= times, `opened ${times} times`, milliseconds);
    return this;
  }

  close(index = 0) {
    return eventually(() => this.closes[index], `close ${index}`, 15_000);
  }

  /** Joins; resolves to `[status, response]` of the first answer. */
  join(topic, parameters = {}) {
    const channel = this.socket.channel(topic, parameters);
    channel.log = [];
    channel.onError((reason) => channel.log.push(["error", reason]));
    channel.onClose((reason) => channel.log.push(["close", reason]));
    return new Promise((resolve) => {
      const push = channel.join();
      push.receive("ok", (response) => resolve({ channel, status: "ok", response }));
      push.receive("error", (response) => resolve({ channel, status: "error", response }));
    });
  }

  end() {
    this.socket.disconnect();
    this.socket.reconnectTimer?.reset();
  }
}

/** The answer to a push. */
export function ask(channel, event, payload) {
  const answer = new Promise((resolve, reject) => {
    const push = channel.push(event, payload);
    push.receive("ok", resolve).receive("error", reject).receive("timeout", reject);
  });
  return within(5_000, answer, `no answer to ${event}`);
}

const heartbeats = (events) => events.filter(({ text }) => text?.includes('"heartbeat"')).length;

async function talks(place, version, options) {
  const client = await new Client(version, place, { ...options, heartbeatIntervalMs: 700 }).opened();
  const { channel, status, response } = await client.join("room:lobby", { hello: "ü" });
  assert.deepEqual([status, response.user], ["ok", "alice"]);
  for (const payload of [{ n: 1 }, { text: "ü🚪" }, { big: "x".repeat(300_000) }]) {
    assert.deepEqual(await ask(channel, "echo", payload), payload);
  }
  const bytes = new Uint8Array(70_000).map((_, index) => index).buffer;
  const back = await ask(channel, "echo", bytes);
  assert.deepEqual(Buffer.from(back), Buffer.from(bytes));
  const said = new Promise((resolve) => channel.on("said", resolve));
  await place.app.act("say", { topic: "room:lobby", text: "from the server" });
  assert.deepEqual(await within(3_000, said, "no broadcast"), { text: "from the server" });
  // phoenix.js closes a socket whose heartbeat is not answered before the next.
  const enough = async () => heartbeats(await place.app.events("message")) >= 3;
  await eventually(enough, "three heartbeats", 5_000);
  assert.deepEqual([client.opens, client.closes], [1, []]);
  client.socket.disconnect(undefined, 4000, "enough");
  const close = await place.app.saw("close");
  assert.deepEqual([close.code, close.reason], [4000, "enough"]);
  const end = await place.app.saw("end");
  assert.equal(end.clean, true);
}

async function joins(place, version, options, server) {
  const client = await new Client(version, place, { ...options, rejoinAfterMs: () => 100 }).opened();
  const refused = async (topic, reason, parameters) => {
    const { channel, ...answer } = await client.join(topic, parameters);
    channel.leave();
    assert.deepEqual(answer, { status: "error", response: { reason } });
  };
  await refused("closed:one", "unauthorized");
  await refused("nothing:one", "unmatched topic");
  await refused("raise:one", "join crashed");
  await refused("private:one", "unauthorized", { token: forged() });
  const inside = await client.join("private:two", { token: token("bob") });
  assert.deepEqual([inside.status, inside.response], ["ok", { user: "bob" }]);
  // A crash is an error of its topic alone, and the client joins again.
  const { channel } = await client.join("room:crash");
  channel.push("crash", {});
  await eventually(() => channel.log.length > 0, "an error of the topic");
  const payload = server.version === "1.7" ? {} : { reason: "channel_crash" };
  assert.deepEqual(channel.log[0], ["error", payload]);
  await eventually(() => channel.state === "joined", "joined again");
  // A second join closes the first.
  const second = await client.join("room:crash");
  assert.equal(second.status, "ok");
  second.channel.push("stop", {});
  await eventually(() => second.channel.log.length > 0, "a close of the topic");
  assert.equal(second.channel.log[0][0], "close");
  assert.deepEqual([client.opens, client.closes], [1, []]);
  client.end();
}

/** A log-out by broadcast, then a transport process that dies. */
async function serverCloses(place, version, options, server) {
  const quick = { ...options, reconnectAfterMs: () => 100 };
  const client = await new Client(version, place, quick).opened();
  await place.app.act("disconnect", { user: "alice" });
  const expected = server.version === "1.7" ? 1000 : 1001;
  assert.deepEqual(await client.close(), { code: expected, reason: "" });
  if (expected === 1000) {
    // A log-out of 1.7 keeps its clients away.
    await pause(800);
    assert.equal(client.opens, 1);
    client.end();
    return;
  }
  await client.opened(2);
  await place.app.act("kill");
  const { code } = await client.close(1);
  // Without the gateway it is 1006; behind it, a code that the client comes back from.
  assert.ok(place.gateway ? code !== 1000 : code === 1006, String(code));
  await client.opened(3);
  client.end();
}

async function restart(place, version, options) {
  const client = await new Client(version, place, { ...options, reconnectAfterMs: () => 200 }).opened();
  const { channel } = await client.join("room:lobby");
  await place.app.stop();
  assert.deepEqual(await client.close(), { code: 1012, reason: "" });
  await pause(500);
  await place.app.begin();
  await client.opened(2, 15_000);
  await eventually(() => channel.state === "joined", "joined again", 15_000);
  assert.deepEqual(await ask(channel, "echo", { again: true }), { again: true });
  client.end();
}

/** Refused by `connect/3`: without the gateway the client knows nothing and never stops. */
async function refusedDirectly(place, version, options) {
  const client = new Client(version, place, { ...options, token: forged() });
  const answers = async () => (await place.app.events("answer")).filter(({ status }) => status === 403);
  await eventually(async () => (await answers()).length >= 4, "four refused handshakes");
  assert.equal(client.opens, 0);
  assert.ok(client.closes.every(({ code }) => code === 1006));
  client.end();
}

/** The same behind the gateway: one explained close of the phoenix dialect. */
async function refusedThrough(place, version, options, value, reason) {
  const client = new Client(version, place, { ...options, token: value });
  const { code, reason: said } = await client.close();
  assert.deepEqual([code, said], [1000, reason]);
  await pause(1_500);
  if (version !== "1.8.16") assert.equal(client.closes.length, 1, "it stays away");
  client.end();
}

async function authChannel(place, version) {
  const begun = Date.now();
  const client = await new Client(version, place).opened();
  const refused = await client.join("private:one", { token: forged() });
  assert.deepEqual(refused.response, { reason: "unauthorized" });
  refused.channel.leave();
  const accepted = await client.join("private:two", { token: token("carol") });
  assert.deepEqual(accepted.response, { user: "carol" });
  // A client that is in may stay, and send more than a stranger.
  await pause(Math.max(0, begun + ACCEPTED_WITHIN_MS + 1_000 - Date.now()));
  const large = { text: "x".repeat(300_000) };
  assert.deepEqual(await ask(accepted.channel, "echo", large), large);
  assert.deepEqual([client.opens, client.closes], [1, []]);
  client.end();
}

/** Clients that join no channel that authenticates are strangers, and gone after the deadline. */
async function strangers(place, version) {
  const client = await new Client(version, place).opened();
  const joined = await client.join("room:public");
  assert.equal(joined.status, "ok");
  const { reason } = await client.close();
  assert.equal(reason, "authentication_timed_out");
  const end = await place.app.saw("close");
  assert.equal(end.code, 1008);
  client.end();
}

/** Whose connection a revocation of the gateway ends, and the application's own never does. */
async function revoked(place, version, options) {
  const client = await new Client(version, place, options).opened();
  await place.gateway.revoke("alice");
  const { reason } = await client.close();
  assert.equal(reason, "token_revoked");
  await place.app.saw("end");
  client.end();
}

async function expires(place, version, options) {
  const client = await new Client(version, place, { ...options, token: token("alice", 3) }).opened();
  const { reason } = await client.close();
  assert.equal(reason, "token_expired");
  await place.app.saw("end");
  client.end();
}

const HANDSHAKE = { auth: "handshake", routeLines: 'dialect = "phoenix"' };
const MESSAGE = {
  auth: "message",
  authLines: 'preset = "phoenix"\naccepted_topics = ["private:*"]',
  routeLines: 'dialect = "phoenix"',
};
const jwt = (carrier) => ({
  auth: "jwt",
  authLines: `carriers = ["${carrier}"]`,
  routeLines: 'dialect = "phoenix"',
});

export function phoenixChecks() {
  return CLIENTS.flatMap(({ client, server, paramsOnly = false }) => {
    const carrier = { token: token(), paramsOnly };
    const name = (what) => `phoenix.js ${client}, ${server.version} on ${server.adapter}: ${what}`;
    const wants = { app: "phoenix", options: server, route: HANDSHAKE };
    const byMessage = { ...wants, options: { ...server, auth: "channel" }, route: MESSAGE };
    const judged = { ...wants, route: jwt(paramsOnly ? "query:token" : "subprotocol") };
    const run = (what, body, where = wants, only = undefined) =>
      at(where, name(what), (place) => body(place, client, carrier, server), only);
    return [
      run("talks, heartbeats, closes with its code", talks),
      run("talks over TLS", talks, overTls(wants)),
      run("talks over TLS up to the gateway", talks, tlsInFront(wants), "gateway"),
      run("refused, crashed and doubled joins stay in their topics", joins),
      run("a log-out and a killed transport", serverCloses),
      run("a restart of the server", restart),
      run("an authenticating channel", (place) => authChannel(place, client), byMessage),
      run("a stranger on an authenticating socket", (place) => strangers(place, client), byMessage, "gateway"),
      run("a refused connect is tried without end", refusedDirectly, wants, "direct"),
      run(
        "a refused connect is explained",
        (place) => refusedThrough(place, client, carrier, forged(), "token_forbidden"),
        wants,
        "gateway",
      ),
      run(
        "no token is explained",
        (place) => refusedThrough(place, client, carrier, undefined, "token_missing"),
        judged,
        "gateway",
      ),
      run(
        "an expired token is explained",
        (place) => refusedThrough(place, client, carrier, token("alice", -60), "token_expired"),
        judged,
        "gateway",
      ),
      run("a token that the gateway and the application verify", talks, judged, "gateway"),
      run("a revoked user", revoked, judged, "gateway"),
      run("a token that expires", expires, judged, "gateway"),
    ];
  });
}
