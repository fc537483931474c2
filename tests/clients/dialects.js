// The real client libraries against every dialect: after a refusal that is final nobody comes
// back, after another nobody comes back faster than the pace, and who can get a fresh token goes
// on with it. Connections are counted by the gateway. The waits run beside each other.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { Socket } from "phoenix";
import { Socket as OlderSocket } from "phoenix-1000";
import Pusher from "pusher-js";
import WebSocket from "ws";
import { DialectGateway, forged, token } from "./dialect_gateway.js";
import { check, eventually, pause, within } from "./harness.js";
import { openCentrifuge } from "./snippets/centrifuge.js";
import { openClient } from "./snippets/graphql-ws.js";
import { openSocket } from "./snippets/phoenix.js";
import { stopOnRefusal } from "./snippets/live_view.js";
import { openPusher } from "./snippets/pusher.js";

/** How long nobody may come back after a refusal that is final. */
const QUIET_MS = 10_000;
/** How long reconnects are watched. */
const WATCH_MS = 21_000;
/** The pace of the phoenix dialect. */
const PACE_MS = 5_000;
/** Close lines carry the time at which they are written, a little after the end. */
const SLACK_MS = 150;

const PHOENIX = ['dialect = "auto"', 'auth = "offered"', 'subprotocols = ["phoenix"]'];
const GRAPHQL = ['auth = "init"', 'subprotocols = ["graphql-transport-ws"]'];
const CENTRIFUGE = ['dialect = "centrifuge"', 'auth = "connect"'];
const REFRESHED = [
  ...CENTRIFUGE,
  `reauthenticate = { prefix = '{"refresh":', token = "refresh.token" }`,
];
const OPEN = ['auth = "none"'];
const DOWN = 'backend = "down"';

const ROUTES = [
  ["/phoenix/older/websocket", PHOENIX],
  ["/phoenix/told/websocket", PHOENIX],
  ["/phoenix/deaf/websocket", PHOENIX],
  ["/phoenix/live/websocket", PHOENIX],
  ["/phoenix/older-down/websocket", [...OPEN, DOWN]],
  ["/phoenix/down/websocket", [...OPEN, DOWN]],
  ["/phoenix/page/websocket", PHOENIX],
  ["/phoenix/page-down/websocket", [...OPEN, DOWN]],
  ["/plain/page", ['auth = "offered"', 'subprotocols = ["portcullis"]']],
  ["/plain/page-down", ['subprotocols = ["portcullis"]', ...OPEN, DOWN]],
  ["/graphql/forged", GRAPHQL],
  ["/graphql/expires", GRAPHQL],
  ["/graphql/stale", GRAPHQL],
  ["/graphql/twice", GRAPHQL],
  ["/graphql/down", [...GRAPHQL, DOWN]],
  ["/app/*", ['auth = "offered"']],
  ["/pusher-down/app/*", [...OPEN, DOWN]],
  ["/centrifuge/forged", CENTRIFUGE],
  ["/centrifuge/expires", CENTRIFUGE],
  ["/centrifuge/refreshes", REFRESHED],
  ["/centrifuge/stale", CENTRIFUGE],
  ["/centrifuge/pings", CENTRIFUGE],
  ["/centrifuge/down", [...CENTRIFUGE, DOWN]],
];

/** Waits for the one connection's end, and that no other follows. */
async function staysAway(gateway, route, cause, code) {
  await eventually(() => gateway.ended(route).length > 0, `${route} ends`, 15_000);
  await pause(QUIET_MS);
  const ended = gateway.ended(route).map((line) => [line.cause, line.code]);
  assert.deepEqual(ended, [[cause, code]]);
}

/** Watches reconnects: there are some, and none sooner than `apart` after the one before. */
async function keepsPace(gateway, route, cause, apart) {
  await pause(WATCH_MS);
  const ended = gateway.ended(route);
  assert.ok(ended.length >= 2, `${ended.length} connections`);
  for (const [index, line] of ended.entries()) {
    assert.equal(line.cause, cause);
    if (index === 0) continue;
    const between = line.begun - ended[index - 1].begun;
    assert.ok(between >= apart - SLACK_MS, `${between} ms between two connections`);
  }
}

/** Without anything that the application adds. */
function bareSocket(Kind, gateway, path, options = {}) {
  const socket = new Kind(gateway.url(path), { transport: WebSocket, ...options });
  socket.connect();
  return socket;
}

function phoenixChecks(gateway) {
  return [
    check("phoenix 1.8.15: 1000 after the pace keeps it away", async () => {
      const route = "/phoenix/older/websocket";
      const options = { authToken: forged() };
      const socket = bareSocket(OlderSocket, gateway, "/phoenix/older", options);
      await staysAway(gateway, route, "token_bad_signature", 1000);
      assert.ok(gateway.ended(route)[0].age_ms >= PACE_MS - SLACK_MS);
      socket.disconnect();
    }),
    check("phoenix: the documented socket stops at a refusal", async () => {
      const begun = Date.now();
      const options = { transport: WebSocket };
      const reason = await new Promise((resolve) => {
        openSocket(gateway.url("/phoenix/told"), async () => token(-60), resolve, options);
      });
      assert.equal(reason, "token_expired");
      assert.ok(Date.now() - begun < 2_000, "the message comes at once");
      await staysAway(gateway, "/phoenix/told/websocket", "token_expired", 1000);
      // It closed by itself, and was not kept waiting.
      assert.ok(gateway.ended("/phoenix/told/websocket")[0].age_ms < 2_000);
    }),
    check("LiveView: the documented guard stops the page's socket", async () => {
      const options = { transport: WebSocket, authToken: token(-60) };
      const socket = new Socket(gateway.url("/phoenix/live"), options);
      // LiveSocket needs a DOM. These two methods are all that the guard uses of it.
      const liveSocket = { getSocket: () => socket, disconnect: () => socket.disconnect() };
      const reason = await new Promise((resolve) => {
        stopOnRefusal(liveSocket, resolve);
        socket.connect();
      });
      assert.equal(reason, "token_expired");
      await staysAway(gateway, "/phoenix/live/websocket", "token_expired", 1000);
    }),
    check("phoenix: one that heeds no message comes back no faster than the pace", async () => {
      const options = { authToken: forged };
      const socket = bareSocket(Socket, gateway, "/phoenix/deaf", options);
      await keepsPace(gateway, "/phoenix/deaf/websocket", "token_bad_signature", PACE_MS);
      socket.disconnect();
    }),
    ...[["1.8.15", OlderSocket, "older-down"], ["latest", Socket, "down"]].map(
      ([version, Kind, name]) =>
        check(`phoenix ${version}: without a backend it keeps the pace`, async () => {
          const socket = bareSocket(Kind, gateway, `/phoenix/${name}`);
          const route = `/phoenix/${name}/websocket`;
          await keepsPace(gateway, route, "backend_unavailable", PACE_MS);
          socket.disconnect();
        }),
    ),
  ];
}

/** A subscription that ends in `ended`: what the client gave up for. */
function subscribe(client) {
  const ended = new Promise((resolve) => {
    const sink = { next() {}, error: resolve, complete: () => resolve("complete") };
    client.subscribe({ query: "subscription { ticks }" }, sink);
  });
  return ended;
}

function graphqlChecks(gateway) {
  const open = (path, getToken, more) =>
    openClient(gateway.url(path), getToken, { webSocketImpl: WebSocket, ...more });
  return [
    check("graphql-ws: a forged token is final", async () => {
      const ended = subscribe(open("/graphql/forged", forged));
      const { code, reason } = await within(5_000, ended, "no end");
      assert.deepEqual([code, String(reason)], [4401, "token_bad_signature"]);
      await staysAway(gateway, "/graphql/forged", "token_bad_signature", 4401);
    }),
    check("graphql-ws: a token that expires is followed by a fresh one", async () => {
      const asked = [];
      const getToken = ({ expired }) => token(asked.push(expired) === 1 ? 3 : 3600);
      const client = open("/graphql/expires", getToken);
      const acknowledged = [];
      client.on("connected", () => acknowledged.push(Date.now()));
      const ended = subscribe(client);
      await eventually(() => acknowledged.length === 2, "a second ack", 15_000);
      assert.deepEqual(asked, [false, true]);
      const [line] = gateway.ended("/graphql/expires");
      assert.deepEqual([line.cause, line.code, line.stage], ["token_expired", 4403, "open"]);
      const over = await Promise.race([ended, pause(2_000)]);
      assert.equal(over, undefined, "the subscription goes on");
      client.dispose();
    }),
    check("graphql-ws: a token that is over already is followed by a fresh one", async () => {
      const client = open("/graphql/stale", ({ expired }) => token(expired ? 3600 : -60));
      const acknowledged = new Promise((resolve) => client.on("connected", resolve));
      subscribe(client);
      await within(15_000, acknowledged, "no ack");
      const [line] = gateway.ended("/graphql/stale");
      assert.deepEqual([line.cause, line.code], ["token_expired", 4403]);
      client.dispose();
    }),
    check("graphql-ws: without a backend it backs off", async () => {
      const client = open("/graphql/down", () => token());
      subscribe(client);
      await keepsPace(gateway, "/graphql/down", "backend_unavailable", 1_000);
    }),
  ];
}

function pusherChecks(gateway) {
  const open = (onStop, more) =>
    openPusher(Pusher, "127.0.0.1", gateway.ports.plain, onStop, { forceTLS: false, ...more });
  return [
    check("pusher-js: a missing token is final", async () => {
      const stopped = new Promise((resolve) => open(resolve));
      assert.equal(await within(5_000, stopped, "it does not stop"), "token_missing");
      await staysAway(gateway, "/app/*", "token_missing", 4009);
    }),
    check("pusher-js: without a backend it waits its second", async () => {
      const pusher = open(() => {}, { wsPath: "/pusher-down" });
      await keepsPace(gateway, "/pusher-down/app/*", "backend_unavailable", 1_000);
      pusher.disconnect();
    }),
  ];
}

function centrifugeChecks(gateway) {
  const open = (path, getToken, onStop = () => {}) =>
    openCentrifuge(gateway.url(path), getToken, onStop, { websocket: WebSocket });
  return [
    check("centrifuge: a forged token is final", async () => {
      const stopped = new Promise((resolve) => {
        open("/centrifuge/forged", async () => forged(), (...why) => resolve(why));
      });
      const why = await within(5_000, stopped, "it does not stop");
      assert.deepEqual(why, [3500, "token_bad_signature"]);
      await staysAway(gateway, "/centrifuge/forged", "token_bad_signature", 3500);
    }),
    check("centrifuge: a token that is over already is followed by a fresh one", async () => {
      let asked = 0;
      const getToken = async () => token((asked += 1) === 1 ? -60 : 3600);
      const centrifuge = open("/centrifuge/stale", getToken);
      await centrifuge.ready(10_000);
      assert.equal(asked, 2);
      const [line] = gateway.ended("/centrifuge/stale");
      assert.deepEqual([line.cause, line.by], ["token_expired", "gateway"]);
      centrifuge.disconnect();
    }),
    check("centrifuge: a refresh keeps the connection", async () => {
      let asked = 0;
      const getToken = async () => token((asked += 1) < 3 ? 4 : 3600);
      const centrifuge = open("/centrifuge/refreshes", getToken);
      await centrifuge.ready(5_000);
      await pause(10_000);
      assert.equal(asked, 3);
      assert.equal(centrifuge.state, "connected");
      assert.deepEqual(gateway.ended("/centrifuge/refreshes"), []);
      centrifuge.disconnect();
    }),
    check("centrifuge: without refreshes the next connection has a fresh token", async () => {
      let asked = 0;
      const getToken = async () => token((asked += 1) === 1 ? 4 : 3600);
      const centrifuge = open("/centrifuge/expires", getToken);
      await centrifuge.ready(5_000);
      await eventually(() => asked === 2, "a refresh", 6_000);
      await pause(4_000);
      await centrifuge.ready(5_000);
      assert.equal(asked, 2);
      centrifuge.disconnect();
    }),
    check("centrifuge: what comes with connect reaches the backend, and pings come", async () => {
      const centrifuge = openCentrifuge(
        gateway.url("/centrifuge/pings"), async () => token(), () => {},
        // Of the 25 s that are promised, and 3 s more.
        { websocket: WebSocket, maxServerPingDelay: 3_000 },
      );
      let connects = 0;
      centrifuge.on("connecting", () => (connects += 1));
      // The backend echoes the command, which reads as its reply.
      const subscription = centrifuge.newSubscription("news");
      subscription.subscribe();
      await subscription.ready(5_000);
      await pause(32_000);
      assert.equal(centrifuge.state, "connected");
      assert.ok(connects <= 1, `${connects} attempts`);
      centrifuge.disconnect();
    }),
    check("centrifuge: without a backend it backs off", async () => {
      const centrifuge = open("/centrifuge/down", async () => token());
      await keepsPace(gateway, "/centrifuge/down", "backend_unavailable", 500);
      assert.ok(gateway.ended("/centrifuge/down").length <= 12, "it backs off");
      centrifuge.disconnect();
    }),
  ];
}

/** Serves the libraries and the documented code to a browser. */
async function pageServer() {
  const at = (path) => readFileSync(new URL(path, import.meta.url), "utf8");
  const documented = at("../../docs/front-end.md").match(/```js\n(const RETRY.*?)```/s)[1];
  const files = {
    "/phoenix.mjs": at("node_modules/phoenix/priv/static/phoenix.mjs"),
    "/snippet.js": at("snippets/phoenix.js"),
    "/plain.js": documented,
  };
  const map = JSON.stringify({ imports: { phoenix: "/phoenix.mjs" } });
  const server = createServer((request, response) => {
    const script = files[request.url];
    response.setHeader("Content-Type", script ? "text/javascript" : "text/html");
    response.end(script ?? `<!doctype html><script type="importmap">${map}</script>`);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { server, origin: `http://127.0.0.1:${server.address().port}` };
}

/** The same in a real browser. */
function browserChecks(gateway, browser, origin) {
  const page = async () => {
    const page = await browser.newPage();
    await page.goto(origin);
    return page;
  };
  const phoenix = ([url, token]) =>
    import("/snippet.js").then(
      ({ openSocket }) =>
        new Promise((resolve) => openSocket(url, async () => token, resolve)),
    );
  const plain = ([url, token]) =>
    import("/plain.js").then(
      ({ keepOpen }) =>
        new Promise((resolve) => {
          keepOpen(url, async () => token, () => {}, (...why) => resolve(why));
        }),
    );
  return [
    check("Chromium: phoenix stops at a refusal", async () => {
      const url = gateway.url("/phoenix/page");
      assert.equal(await (await page()).evaluate(phoenix, [url, token(-60)]), "token_expired");
      await staysAway(gateway, "/phoenix/page/websocket", "token_expired", 1000);
    }),
    check("Chromium: phoenix keeps the pace without a backend", async () => {
      (await page()).evaluate(phoenix, [gateway.url("/phoenix/page-down"), ""]).catch(() => {});
      await keepsPace(gateway, "/phoenix/page-down/websocket", "backend_unavailable", PACE_MS);
    }),
    check("Chromium: a raw WebSocket stops at a refusal", async () => {
      const why = await (await page()).evaluate(plain, [gateway.url("/plain/page"), forged()]);
      assert.deepEqual(why, [4401, "token_bad_signature"]);
      await staysAway(gateway, "/plain/page", "token_bad_signature", 4401);
    }),
    check("Chromium: a raw WebSocket waits as long as it is told", async () => {
      const url = gateway.url("/plain/page-down");
      (await page()).evaluate(plain, [url, token()]).catch(() => {});
      await keepsPace(gateway, "/plain/page-down", "backend_unavailable", 2_000);
    }),
  ];
}

/** Runs all of it; `browser` is Chromium, or nothing. */
export async function dialectChecks(browser) {
  const { server, origin } = await pageServer();
  const gateway = await DialectGateway.start(ROUTES, [origin]);
  try {
    const before = await gateway.metric("portcullis_closes_paced_total");
    await Promise.all([
      ...phoenixChecks(gateway),
      ...graphqlChecks(gateway),
      ...pusherChecks(gateway),
      ...centrifugeChecks(gateway),
      ...(browser ? browserChecks(gateway, browser, origin) : []),
    ]);
    await check("the gateway counts the closes that waited", async () => {
      const paced = (await gateway.metric("portcullis_closes_paced_total")) - before;
      assert.ok(paced >= 8, `${paced} paced closes`);
    });
  } finally {
    server.close();
    gateway.stop();
  }
}
