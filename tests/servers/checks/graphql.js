// graphql-ws at both ends.

import assert from "node:assert/strict";
import { eventually, pause, within } from "../../clients/harness.js";
import { WebSocket, packages } from "../packages.js";
import { at, overTls, tlsInFront } from "../place.js";
import { forged, token } from "../tokens.js";

const { createClient } = packages("graphql-ws");

/** A client that remembers its opens and closes. */
class Client {
  constructor(place, { token: value = token(), ...options } = {}) {
    this.acks = 0;
    this.pongs = 0;
    this.closes = [];
    this.client = createClient({
      url: place.url("/graphql"),
      webSocketImpl: WebSocket,
      connectionParams: value === null ? undefined : () => ({ token: typeof value === "function" ? value() : value }),
      retryWait: () => pause(200),
      retryAttempts: 50,
      lazy: false,
      onNonLazyError: () => {},
      ...options,
    });
    this.client.on("connected", (socket) => {
      this.acks += 1;
      this.socket = socket;
    });
    this.client.on("pong", (received) => (this.pongs += received ? 1 : 0));
    this.client.on("closed", ({ code, reason }) => this.closes.push({ code, reason: String(reason) }));
  }

  async ready(times = 1, milliseconds = 10_000) {
    await eventually(() => this.acks >= times, `ack ${times}`, milliseconds);
    return this;
  }

  run(query, variables) {
    const first = new Promise((resolve, reject) => {
      let last;
      this.client.subscribe(
        { query, variables },
        { next: ({ data }) => (last = data), error: (error) => reject(new Error(JSON.stringify(error))), complete: () => resolve(last) },
      );
    });
    return within(5_000, first, `no answer to ${query}`);
  }

  ticks() {
    const seen = [];
    const sink = { next: ({ data }) => seen.push(data.ticks), error: (error) => (seen.error = error), complete() {} };
    seen.stop = this.client.subscribe({ query: "subscription { ticks }" }, sink);
    return seen;
  }

  close(index = 0) {
    return eventually(() => this.closes[index], `close ${index}`, 8_000);
  }
}

async function talks(place) {
  const client = await new Client(place, { keepAlive: 200 }).ready();
  assert.deepEqual(await client.run("{ hello }"), { hello: "hello" });
  const mutation = "mutation ($text: String!) { echo(text: $text) }";
  for (const text of ["ü🚪", "x".repeat(300_000)]) {
    assert.deepEqual(await client.run(mutation, { text }), { echo: text });
  }
  const seen = client.ticks();
  await eventually(() => seen.length >= 4, "four ticks");
  assert.deepEqual(seen.slice(0, 4), [1, 2, 3, 4]);
  await eventually(() => client.pongs >= 3, "three answered pings of the client");
  const pongs = async () => (await place.app.events("pong")).length >= 3;
  await eventually(pongs, "three answered pings of the server");
  seen.stop();
  await place.app.saw("message", ({ text }) => text.includes('"complete"'));
  await client.client.dispose();
  assert.equal((await place.app.saw("close")).code, 1000);
  assert.equal(client.acks, 1);
}

async function closes(place) {
  const client = await new Client(place).ready();
  const seen = client.ticks();
  for (const [index, code] of [4000, 1012, 1001].entries()) {
    await place.app.act("close", { code, reason: "again" });
    assert.deepEqual(await client.close(index), { code, reason: "again" });
    await client.ready(index + 2);
  }
  assert.equal(seen.error, undefined);
  client.socket.close(4321, "mine");
  await place.app.saw("close", ({ code, reason }) => code === 4321 && reason === "mine");
  await client.ready(5);
  // A fatal code ends its subscriptions for good.
  await place.app.act("close", { code: 4400, reason: "fatal" });
  await eventually(() => seen.error, "the subscription ends");
  assert.equal(seen.error.code, 4400);
}

async function restart(place) {
  // While the server is away every try fails, which this client takes as fatal unless told otherwise.
  const client = await new Client(place, { shouldRetry: () => true }).ready();
  const seen = client.ticks();
  await eventually(() => seen.length >= 2, "ticks");
  await place.app.stop();
  assert.deepEqual(await client.close(), { code: 1001, reason: "Going away" });
  await place.app.begin();
  await client.ready(2, 15_000);
  const before = seen.length;
  await eventually(() => seen.length > before + 2, "ticks again");
  await client.client.dispose();
}

async function refused(place) {
  const client = new Client(place, { token: forged(), retryAttempts: 0 });
  assert.deepEqual(await client.close(), { code: 4403, reason: "Forbidden" });
  await client.client.dispose();
}

/** Through the gateway a refusal of the application is final. */
async function refusedThrough(place, value, reason) {
  const client = new Client(place, { token: value });
  const close = await client.close();
  assert.deepEqual(close, { code: 4401, reason });
  await pause(1_200);
  assert.equal(client.closes.length, 1, "it stays away");
  await client.client.dispose();
}

async function silent(place) {
  const socket = new WebSocket(place.url("/graphql"), "graphql-transport-ws");
  const closed = new Promise((resolve) => socket.on("close", (code) => resolve(code)));
  assert.equal(await within(8_000, closed, "no close"), 4408);
}

export function graphqlChecks() {
  const dialect = 'dialect = "graphql-transport-ws"';
  const wants = { app: "graphql", route: { auth: "message", authLines: 'preset = "graphql-transport-ws"', routeLines: dialect } };
  const judged = {
    app: "graphql",
    route: { auth: "jwt", authLines: 'carriers = ["first-message:payload.token"]', routeLines: dialect },
  };
  const run = (name, body, where = wants, only = undefined) => at(where, `graphql-ws: ${name}`, body, only);
  return [
    run("talks, pings both ways", talks),
    run("talks over TLS", talks, overTls(wants)),
    run("talks over TLS up to the gateway", talks, tlsInFront(wants), "gateway"),
    run("close codes both ways", closes),
    run("a restart of the server", restart),
    run("a refused connection_init", refused, wants, "direct"),
    run("a silent client is closed by the server", silent, wants, "direct"),
    run("a refused connection_init is explained", (place) => refusedThrough(place, forged(), "token_forbidden"), wants, "gateway"),
    run("talks behind the gateway's own decision", talks, judged, "gateway"),
    run("no token", (place) => refusedThrough(place, null, "token_missing"), judged, "gateway"),
    run("a forged token", (place) => refusedThrough(place, forged(), "token_bad_signature"), judged, "gateway"),
    run(
      "an expired token is followed by a fresh one",
      async (place) => {
        const client = new Client(place, { token: () => token("alice", client.closes.length ? 3600 : -60) });
        assert.equal((await client.close()).reason, "token_expired");
        await client.ready();
        await client.client.dispose();
      },
      judged,
      "gateway",
    ),
    run(
      "a revoked user",
      async (place) => {
        const client = await new Client(place).ready();
        await place.gateway.revoke("alice");
        assert.equal((await client.close()).reason, "token_revoked");
        await place.app.saw("end");
        await client.client.dispose();
      },
      judged,
      "gateway",
    ),
  ];
}
