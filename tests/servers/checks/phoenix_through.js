// What Phoenix needs of a proxy in front of it, and what becomes of its answers there: plain `ws`
// clients, which show codes and fields that phoenix.js hides. Most checks run both ways.

import assert from "node:assert/strict";
import { pause } from "../../clients/harness.js";
import { DIRECT, at, tlsInFront } from "../place.js";
import { forged, token } from "../tokens.js";
import { Client } from "./ws.js";

const path = (more = "") => `/socket/websocket?vsn=2.0.0&token=${token()}${more}`;

/** Opens, or resolves to the status of the refusal. */
async function status(place, target, options = {}, protocols = []) {
  const client = new Client(place.url(target), protocols, options);
  try {
    await client.open();
    return 101;
  } catch (error) {
    return error.status ?? String(error);
  } finally {
    client.socket.terminate();
  }
}

/** Phoenix's own close codes reach the client as they are, and the client's reach Phoenix. */
async function closeCodes(place) {
  const after = async (act) => {
    const client = await new Client(place.url(path())).open();
    act(client.socket);
    return (await client.close()).code;
  };
  assert.equal(await after((socket) => socket.send("no JSON")), 1011);
  assert.equal(await after((socket) => socket.send("[1,2,3]")), 1011);
  assert.equal(await after((socket) => socket.send("x".repeat(10_000_001))), 1009);
  assert.equal(await after(() => place.app.act("disconnect", { user: "alice" })), 1001);
  await after((socket) => socket.close(4000, "mine"));
  await place.app.saw("close", ({ code, reason }) => code === 4000 && reason === "mine");
  await after((socket) => socket.close());
  await place.app.saw("close", ({ code }) => code === null);
}

/** Nothing that the gateway does by itself keeps an idle client alive, nor does it end an active one. */
async function idle(place) {
  const client = await new Client(place.url(path())).open();
  const begun = Date.now();
  for (let i = 0; i < 4; i += 1) {
    await pause(800);
    client.socket.send(JSON.stringify([null, String(i), "phoenix", "heartbeat", {}]));
  }
  assert.equal((await client.close()).code, 1002);
  assert.ok(Date.now() - begun > 5_000, "heartbeats keep it open");
}

/** `:conn` compares Origin with scheme and Host of the request as the application received it. */
async function sameConnection(place) {
  const own = place.url("", "http");
  assert.equal(await status(place, path(), { origin: own }), 101);
  const [request] = await place.app.events("request");
  const values = (name) => request.headers.filter(([key]) => key === name).map(([, value]) => value);
  assert.deepEqual([values("origin"), values("host")], [[own], [new URL(own).host]]);
}

/** A LiveView's socket has its session from the cookie and `_csrf_token` in the query. */
async function session(place) {
  const live = (csrf) => `/live/websocket?_csrf_token=${csrf}&_track_static%5B0%5D=a&vsn=2.0.0`;
  const headers = { cookie: `other=1; _app_key=${token()}` };
  assert.equal(await status(place, live("csrf-of-the-page"), { headers }), 101);
  if (DIRECT) assert.equal(await status(place, live("guessed"), { headers }), 403);
}

/** Big messages both ways, above what the gateway's own limit would be. */
async function large(place) {
  const client = await new Client(place.url(path())).open();
  const ask = (...message) => client.socket.send(JSON.stringify(message));
  ask("1", "1", "room:a", "phx_join", {});
  await client.next();
  const text = "x".repeat(9_000_000);
  ask("1", "2", "room:a", "echo", { text });
  const answer = JSON.parse(await client.next());
  assert.ok(answer[4].response.text === text);
  client.socket.close();
}

/** What the gateway says in place of each status. */
async function statusesExplained(place) {
  const explained = async (target) => {
    const client = new Client(place.url(target));
    const close = await client.close();
    const message = JSON.parse(client.messages.at(-1));
    assert.equal(message.reason, close.reason);
    return message;
  };
  const forbidden = await explained(`/socket/websocket?vsn=2.0.0&token=${forged()}`);
  assert.deepEqual([forbidden.reason, forbidden.reconnect], ["token_forbidden", false]);
  const raised = await explained(path("&raise=1"));
  assert.deepEqual([raised.reason, raised.reconnect], ["backend_unavailable", true]);
  const unknown = await explained("/nothing/websocket?vsn=2.0.0");
  assert.deepEqual([unknown.reason, unknown.reconnect], ["backend_unavailable", true]);
  assert.ok(unknown.retry_after_ms >= 30_000, "the operator has to mend it");
  const slower = await explained(path("&handled=429"));
  assert.equal(slower.reconnect, true);
  assert.ok(slower.retry_after_ms >= 3_000, JSON.stringify(slower));
  const asked = await explained(path("&handled=401"));
  assert.deepEqual([asked.reason, asked.reconnect], ["token_bad_signature", false]);
}

const elsewhere = { headers: { host: "10.1.2.3" } };

/** `force_ssl` lets only an upgrade with one plain `https` through: 301 otherwise. */
async function forcedToHttps(place) {
  assert.equal(await status(place, path(), elsewhere), 101);
}

async function notHttps(place) {
  const client = new Client(place.url(path()), [], elsewhere);
  const { reason } = await client.close();
  assert.equal(reason, "backend_unavailable");
  assert.match(place.gateway.log, /301/, "the operator hears of the status");
}

/** A client's own claims are no claims of the gateway. */
async function claims(place) {
  const headers = { host: "10.1.2.3", "x-forwarded-proto": ["https", "https"] };
  assert.equal(await status(place, path(), { headers }), 101);
}

async function tokenEntry(place) {
  const entry = `base64url.bearer.phx.${Buffer.from(token()).toString("base64url")}`;
  const client = await new Client(place.url("/socket/websocket?vsn=2.0.0"), ["phoenix", entry]).open();
  assert.equal(client.socket.protocol, "phoenix");
  const [request] = await place.app.events("request");
  const sent = request.headers.find(([name]) => name === "sec-websocket-protocol")[1];
  assert.deepEqual(sent.split(/, ?/), ["phoenix", entry]);
  client.socket.close();
}

export function throughChecks() {
  const bandit = { version: "1.8", adapter: "bandit" };
  const wants = (options = {}, routeLines = "") => ({
    app: "phoenix",
    options: { ...bandit, ...options },
    route: { auth: "handshake", routeLines },
  });
  const run = (name, body, where = wants(), only = undefined) => at(where, `Phoenix: ${name}`, body, only);
  const forced = wants({ forceSsl: true });
  return [
    run("close codes pass as they are", closeCodes),
    run("an idle client is the application's", idle, wants({ timeout: 2_000 })),
    run("origins by connection", sameConnection, wants({ checkOrigin: ":conn" })),
    run("origins by connection behind TLS", sameConnection, tlsInFront(wants({ checkOrigin: ":conn", forceSsl: true })), "gateway"),
    run("session of a LiveView", session, wants({ auth: "session" })),
    run("messages of 9 MB", large),
    run("the token's subprotocol entry", tokenEntry, wants({ authToken: true }, 'dialect = "phoenix"')),
    run("statuses are explained", statusesExplained, wants({}, 'dialect = "plain"'), "gateway"),
    run("force_ssl behind TLS", forcedToHttps, tlsInFront(forced), "gateway"),
    run("claims of a client behind TLS", claims, tlsInFront(forced), "gateway"),
    run("force_ssl without TLS", notHttps, wants({ forceSsl: true }, 'dialect = "plain"'), "gateway"),
  ];
}
