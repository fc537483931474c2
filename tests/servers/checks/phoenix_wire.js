// The stand-in itself, byte by byte: statuses instead of 101, origins, subprotocols, close codes,
// limits and long polling, as measured with the real Phoenix.

import assert from "node:assert/strict";
import { connect } from "node:net";
import { pause, within } from "../../clients/harness.js";
import { WebSocket } from "../packages.js";
import { at } from "../place.js";
import { token } from "../tokens.js";

const VSN = "vsn=2.0.0";
const path = (more = "") => `/socket/websocket?${VSN}&token=${token()}${more}`;

/** An upgrade; resolves to its status, and the fields of a 101. */
function upgrade(place, target, { protocols = [], headers = {} } = {}) {
  const socket = new WebSocket(place.url(target), protocols, { headers, perMessageDeflate: false });
  return new Promise((resolve) => {
    socket.on("upgrade", ({ headers: fields }) => resolve({ status: 101, fields, socket }));
    socket.on("unexpected-response", (_, response) => {
      let body = "";
      response.on("data", (bytes) => (body += bytes));
      response.on("end", () => resolve({ status: response.statusCode, fields: response.headers, body }));
    });
    socket.on("error", () => {});
  });
}

async function status(place, target, options) {
  const answer = await upgrade(place, target, options);
  answer.socket?.terminate();
  return answer.status;
}

async function table(place, rows) {
  for (const [expected, name, target, options] of rows) {
    assert.equal(await status(place, target, options), expected, name);
  }
}

async function statuses(place) {
  await table(place, [
    [101, "a good token", path()],
    [403, "connect/3 says no", `/socket/websocket?${VSN}&token=x`],
    [403, "no vsn", `/socket/websocket?token=${token()}`],
    [403, "an unknown vsn", `/socket/websocket?vsn=9.0.0&token=${token()}`],
    [403, "an unreadable vsn", `/socket/websocket?vsn=two&token=${token()}`],
    [500, "connect/3 raises", path("&raise=1")],
    [429, "an error handler", path("&handled=429")],
    [404, "another path", `/nothing/websocket?${VSN}`],
  ]);
  const handled = await upgrade(place, path("&handled=429"));
  assert.deepEqual([handled.body, handled.fields["retry-after"]], ["the application says no", "3"]);
}

/** A whole request by hand; resolves to the answer's first line. */
function byHand(place, lines) {
  const socket = connect(place.app.port, "127.0.0.1");
  socket.write(`${[...lines, "Host: app", ""].join("\r\n")}\r\n`);
  return new Promise((resolve) => {
    socket.once("data", (bytes) => {
      resolve(Number(bytes.toString().split(" ")[1]));
      socket.destroy();
    });
    socket.on("error", resolve);
  });
}

async function badRequests(place) {
  const all = [
    `GET ${path()} HTTP/1.1`,
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
  ];
  assert.equal(await byHand(place, all), 101);
  const changes = [
    ["no Upgrade in Connection", 1, "Connection: close"],
    ["no key", 4, "X: y"],
    ["version 12", 3, "Sec-WebSocket-Version: 12"],
    ["HTTP/1.0", 0, `GET ${path()} HTTP/1.0`],
    ["POST", 0, `POST ${path()} HTTP/1.1`],
  ];
  for (const [name, index, line] of changes) {
    assert.equal(await byHand(place, swap(all, index, line)), 400, name);
  }
}

const swap = (list, index, value) => list.map((item, at_) => (at_ === index ? value : item));

const origin = (value) => ({ headers: { origin: value } });

const originRows = {
  own: [
    [101, "none", path()],
    [101, "the host, another scheme and port", path(), origin("https://app.example.com:444")],
    [403, "capitals", path(), origin("https://App.example.com")],
    [403, "another host", path(), origin("https://evil.example.com")],
    [403, "null", path(), origin("null")],
  ],
  list: [
    [101, "as listed", path(), origin("https://app.example.com")],
    [403, "another scheme", path(), origin("http://app.example.com")],
    [403, "another port", path(), origin("https://app.example.com:444")],
    [101, "below a listed host", path(), origin("http://a.b.example.org:81")],
    [101, "the listed host itself", path(), origin("http://example.org")],
    [403, "one that only ends alike", path(), origin("http://badexample.org")],
  ],
};

async function sameConnection(place) {
  const from = (value, host) => ({ headers: { origin: value, host } });
  await table(place, [
    [101, "Host and scheme", path(), from("http://app.example.com", "app.example.com")],
    [403, "another port", path(), from("http://app.example.com:81", "app.example.com")],
    [403, "https, which the server does not see", path(), from("https://app.example.com", "app.example.com")],
  ]);
}

async function forcedToHttps(place) {
  const as = (headers, host = "10.1.2.3") => ({ headers: { host, ...headers } });
  const proto = (value) => ({ "x-forwarded-proto": value });
  await table(place, [
    [101, "https", path(), as(proto("https"))],
    [301, "absent", path(), as({})],
    [301, "http", path(), as(proto("http"))],
    [301, "capitals", path(), as(proto("HTTPS"))],
    [301, "wss", path(), as(proto("wss"))],
    [301, "a list", path(), as(proto("https, https"))],
    [301, "two fields", path(), as(proto(["http", "https"]))],
    [101, "localhost", path(), as({}, "localhost:4000")],
    [101, "127.0.0.1", path(), as({}, "127.0.0.1")],
  ]);
}

const entry = (text) => `base64url.bearer.phx.${Buffer.from(text).toString("base64url")}`;

async function protocolOf(place, protocols, target = `/socket/websocket?${VSN}`) {
  const { status: code, fields, socket } = await upgrade(place, target, { protocols });
  socket?.terminate();
  return [code, fields["sec-websocket-protocol"]];
}

async function tokenProtocol(place) {
  const good = entry(token());
  assert.deepEqual(await protocolOf(place, ["phoenix", good]), [101, "phoenix"]);
  assert.deepEqual(await protocolOf(place, [good, "phoenix"]), [101, "phoenix"]);
  assert.deepEqual(await protocolOf(place, [good]), [101, undefined]);
  assert.deepEqual(await protocolOf(place, ["phoenix"]), [403, undefined]);
  assert.deepEqual(await protocolOf(place, [good, entry(`${token()} `)]), [403, undefined]);
  assert.deepEqual(await protocolOf(place, ["phoenix", "base64url.bearer.phx.!"]), [500, undefined]);
}

async function closeCodes(place, expected) {
  const opened = async (options) => {
    const { socket } = await upgrade(place, path(), options);
    const closed = new Promise((resolve) => socket.on("close", (code) => resolve(code)));
    return { socket, closed: () => within(5_000, closed, "no close") };
  };
  const after = async (act) => {
    const { socket, closed } = await opened();
    act(socket);
    return closed();
  };
  // Bytes that `ws` would not send by itself.
  const raw = (...bytes) => (socket) => socket._socket.write(Buffer.from(bytes));
  assert.equal(await after((socket) => socket.send("no JSON")), 1011, "not JSON");
  assert.equal(await after((socket) => socket.send("[1,2,3]")), 1011, "wrong shape");
  assert.equal(await after((socket) => socket.send(Buffer.from([9, 9]))), 1011, "binary");
  assert.equal(await after(raw(0x81, 0x81, 0, 0, 0, 0, 0xff)), 1007, "invalid UTF-8");
  assert.equal(await after(raw(0x81, 0x01, 0x41)), 1002, "not masked");
  // A frame of 10,000,000 bytes passes; Bandit counts its header of 14 bytes too.
  const text = (size) => `["1","1","room:x","echo",{"x":"${"x".repeat(size - 34)}"}]`;
  const largest = 10_000_000 - expected.header;
  assert.equal(text(100).length, 100);
  assert.equal(await after((socket) => socket.send(text(largest + 1))), 1009, "too large");
  const { socket, closed } = await opened();
  const answer = new Promise((resolve) => socket.on("message", resolve));
  socket.send(text(largest));
  assert.match(String(await within(5_000, answer, "no answer")), /unmatched topic/);
  socket.close(4000);
  assert.equal(await closed(), expected.answer, "the client's own");
  const empty = await opened();
  empty.socket.close();
  assert.equal(await empty.closed(), expected.empty, "the client's, without a code");
}

async function idle(place, code) {
  const { socket } = await upgrade(place, path());
  const begun = Date.now();
  const closed = new Promise((resolve) => socket.on("close", resolve));
  for (let i = 0; i < 4; i += 1) {
    await pause(300);
    socket.ping();
  }
  assert.equal(await within(3_000, closed, "no close"), code);
  assert.ok(Date.now() - begun > 1_700, "pings keep it open");
}

async function session(place) {
  const live = (csrf) => `/live/websocket?${VSN}&_csrf_token=${csrf}`;
  const cookie = { headers: { cookie: `a=b; _app_key=${token()}` } };
  await table(place, [
    [101, "cookie and CSRF token", live("csrf-of-the-page"), cookie],
    [403, "no cookie", live("csrf-of-the-page")],
    [403, "another CSRF token", live("guessed"), cookie],
  ]);
}

async function longPoll(place) {
  const own = `http://${place.app.address}/socket/longpoll?${VSN}`;
  const json = async (url, options) => (await fetch(url, options)).json();
  assert.deepEqual(await json(`${own}&token=bad`), { status: 403 });
  const opened = await json(own, { headers: { "x-phoenix-authtoken": token() } });
  assert.deepEqual([opened.status, opened.messages], [410, []]);
  const at_ = `${own}&token=${opened.token}`;
  const message = (...parts) => JSON.stringify(parts);
  const body = [message("1", "1", "room:a", "phx_join", {}), message("1", "2", "room:a", "echo", { n: 1 })];
  const headers = { "content-type": "application/x-ndjson" };
  assert.deepEqual(await json(at_, { method: "POST", headers, body: body.join("\n") }), { status: 200 });
  const answer = await json(at_);
  assert.equal(answer.status, 200);
  assert.deepEqual(answer.messages.map((text) => JSON.parse(text)[4]), [
    { status: "ok", response: { user: "alice" } },
    { status: "ok", response: { n: 1 } },
  ]);
  assert.equal((await json(at_)).status, 204, "a window without a message");
  await pause(1_200);
  assert.equal((await json(at_, { method: "POST", headers, body: body[0] })).status, 410, "gone");
}

/** The client's FIN is answered by FIN; a shutdown closes everything with 1012. */
async function endings(place) {
  const first = await upgrade(place, path());
  first.socket._socket.end();
  await within(2_000, new Promise((resolve) => first.socket.on("close", resolve)), "no FIN");
  const codes = await Promise.all(
    Array.from({ length: 20 }, async () => {
      const { socket } = await upgrade(place, path());
      return { code: new Promise((resolve) => socket.on("close", resolve)) };
    }),
  );
  place.app.process.kill("SIGTERM");
  for (const { code } of codes) assert.equal(await within(3_000, code, "no close"), 1012);
}

export function wireChecks() {
  const bandit = { version: "1.8", adapter: "bandit" };
  const cowboy = { version: "1.8", adapter: "cowboy" };
  const old = { version: "1.7", adapter: "cowboy" };
  const run = (name, options, body) =>
    at({ app: "phoenix", options }, `Phoenix stand-in: ${name}`, body, "direct");
  const urlHost = "app.example.com";
  const list = ["https://app.example.com", "//*.example.org"];
  return [
    run("statuses", bandit, statuses),
    run("requests that are no upgrade", bandit, badRequests),
    run("origins of its own host", { ...bandit, checkOrigin: true, urlHost }, (place) => table(place, originRows.own)),
    run("origins of a list", { ...bandit, checkOrigin: list }, (place) => table(place, originRows.list)),
    run("origins by connection", { ...bandit, checkOrigin: ":conn" }, sameConnection),
    run("force_ssl", { ...bandit, forceSsl: true }, forcedToHttps),
    run("the token's subprotocol", { ...bandit, authToken: true }, tokenProtocol),
    run("1.7 answers no subprotocol", old, async (place) => {
      assert.deepEqual(await protocolOf(place, ["phoenix", entry(token())], path()), [101, undefined]);
    }),
    run("configured subprotocols", { ...bandit, subprotocols: ["mine"] }, async (place) => {
      assert.deepEqual(await protocolOf(place, ["other", "mine"], path()), [101, "mine"]);
      assert.deepEqual(await protocolOf(place, ["other"], path()), [403, undefined]);
      assert.deepEqual(await protocolOf(place, [], path()), [101, undefined]);
    }),
    run("session of a LiveView", { ...bandit, auth: "session" }, session),
    run("close codes of Bandit", bandit, (place) => closeCodes(place, { header: 14, answer: 1000, empty: 1000 })),
    run("close codes of Cowboy", cowboy, (place) => closeCodes(place, { header: 0, answer: 4000, empty: 1005 })),
    run("idle on Bandit", { ...bandit, timeout: 600 }, (place) => idle(place, 1002)),
    run("idle on Cowboy", { ...cowboy, timeout: 600 }, (place) => idle(place, 1000)),
    run("FIN and shutdown", bandit, endings),
    run("long polling", { ...bandit, window: 700 }, longPoll),
  ];
}
