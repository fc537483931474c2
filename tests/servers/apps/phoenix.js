// A stand-in for a Phoenix application: it answers as the real one was measured to answer on the
// wire (Phoenix 1.8.12 on Bandit and on Cowboy, 1.7.24 on Cowboy), because Phoenix itself is in
// none of the registries that the tests may use.
//
//   node phoenix.js PORT '{"version":"1.8","adapter":"bandit",…}'
//
// Sockets: /socket/websocket and /live/websocket, /socket/longpoll and /live/longpoll where
// `longpoll` is set. The options' defaults are below.
//
// Actions (see control.js): disconnect?user= (the broadcast of a log-out; empty: all sockets),
// revoke?user= (the same, and `connect/3` says no from now on), kill (the transport process dies,
// no close frame), say?topic=&text=, sockets. SIGTERM closes all sockets with 1012, as a shutdown.

import { createHash } from "node:crypto";
import { Control, webServer } from "./control.js";
import { BINARY, CLOSE, FrameReader, PING, PONG, ProtocolError, TEXT, closeFrame, frame } from "./frames.js";
import { BadMessage, Channels, Topics } from "./phoenix_channels.js";
import { forcedToHttps, judge } from "./phoenix_handshake.js";
import { LongPolls } from "./phoenix_longpoll.js";

const DEFAULTS = {
  version: "1.8", // or "1.7"
  adapter: "bandit", // or "cowboy"
  auth: "connect", // the token in `connect/3`; "session": cookie and CSRF token; "channel": joins
  authToken: false, // `auth_token: true` of the socket
  subprotocols: null, // a list
  checkOrigin: false, // true, ":conn" or a list
  urlHost: "localhost",
  forceSsl: false,
  upgrades: true, // false: a proxy before it that knows no WebSocket
  longpoll: true,
  window: 10_000, // of long polling, ms
  timeout: 60_000, // without a byte of the client, ms
  limit: 10_000_000, // bytes of a client's frame or message
};

const SOCKETS = ["/socket", "/live"];
const ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** Close codes by event; null is an empty close frame. */
function closes({ version, adapter }) {
  const bandit = adapter === "bandit";
  return {
    disconnect: version === "1.7" ? 1000 : 1001,
    shutdown: 1012,
    idle: bandit ? 1002 : 1000,
    badMessage: 1011,
    answer: (code) => (bandit ? 1000 : code),
  };
}

class Socket {
  constructor(app, id, raw, user) {
    Object.assign(this, { app, id, raw, user, closed: false });
    this.channels = new Channels({
      version: app.options.version,
      topics: app.topics,
      user,
      send: (data) => this.#send(data),
    });
    this.reader = new FrameReader({
      limit: app.options.limit,
      countHeader: app.options.adapter === "bandit",
      on: (opcode, data) => this.#on(opcode, data),
    });
    raw.setNoDelay(true);
    raw.on("data", (bytes) => this.bytes(bytes));
    raw.on("end", () => this.#gone(false));
    raw.on("error", () => this.#gone(false));
    raw.on("close", () => this.#gone(false));
    this.#wait();
  }

  #wait() {
    clearTimeout(this.timer);
    const { timeout } = this.app.options;
    this.timer = setTimeout(() => this.close(this.app.closes.idle), timeout);
  }

  bytes(bytes) {
    if (this.closed) return;
    this.#wait();
    try {
      this.reader.push(bytes);
    } catch (error) {
      if (error instanceof ProtocolError) this.close(error.code);
      else if (error instanceof BadMessage) this.close(this.app.closes.badMessage);
      else throw error;
    }
  }

  #on(opcode, data) {
    if (this.closed) return;
    if (opcode === PING) this.raw.write(frame(PONG, data));
    if (opcode === CLOSE) {
      this.app.control.log("close", { id: this.id, ...data });
      this.close(this.app.closes.answer(data.code), true);
    }
    if (opcode === TEXT || opcode === BINARY) {
      this.app.control.message(this.id, data);
      this.channels.receive(data);
    }
  }

  #send(data) {
    if (this.closed) return;
    const text = typeof data === "string";
    this.raw.write(frame(text ? TEXT : BINARY, Buffer.from(data)));
  }

  /** A close frame with no reason, and FIN right behind it. */
  close(code, clean = false) {
    if (this.closed) return;
    this.raw.end(closeFrame(code));
    this.#gone(clean);
  }

  /** The transport process dies. */
  kill() {
    this.raw.end();
    this.#gone(false);
  }

  #gone(clean) {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.timer);
    this.channels.end();
    this.app.sockets.delete(this);
    this.app.control.log("end", { id: this.id, clean });
    this.raw.end();
    setTimeout(() => this.raw.destroy(), 2_000).unref();
  }
}

class App {
  constructor(options) {
    this.options = { ...DEFAULTS, ...options, revoked: new Set() };
    this.closes = closes(this.options);
    this.topics = new Topics();
    this.sockets = new Set();
    this.ids = 0;
    this.control = new Control({
      disconnect: ({ user }) => this.disconnect(user),
      revoke: ({ user }) => {
        this.options.revoked.add(user);
        return this.disconnect(user);
      },
      kill: () => [...this.sockets].map((socket) => socket.kill()).length,
      say: ({ topic, text }) => this.topics.say(topic, "said", { text }),
      sockets: () => this.sockets.size,
    });
    this.polls = new LongPolls(this);
    this.server = webServer((request, response) => this.#request(request, response));
    this.server.on("upgrade", (request, raw, head) => this.#upgrade(request, raw, head));
  }

  disconnect(user) {
    const meant = [...this.sockets].filter((socket) => !user || socket.user === user);
    for (const socket of meant) socket.close(this.closes.disconnect);
    return meant.length;
  }

  #socketPath(request, transport) {
    const { pathname } = new URL(request.url, "http://app");
    return SOCKETS.some((path) => pathname === `${path}/${transport}`);
  }

  #request(request, response) {
    if (this.control.handle(request, response)) return;
    this.control.request(request);
    const forced = forcedToHttps(this.options, request);
    if (forced) {
      this.control.log("answer", { status: forced.status });
      response.writeHead(forced.status, forced.headers).end();
    } else if (this.options.longpoll && this.#socketPath(request, "longpoll")) {
      this.polls.handle(request, response);
    } else if (this.#socketPath(request, "websocket")) {
      const answer = judge(this.options, request);
      this.control.log("answer", { status: answer.status });
      response.writeHead(answer.status, answer.headers).end(answer.body);
    } else {
      response.writeHead(404, { "content-type": "text/plain" }).end("Not Found");
    }
  }

  #upgrade(request, raw, head) {
    raw.on("error", () => {});
    this.control.request(request);
    const known = this.options.upgrades && this.#socketPath(request, "websocket");
    const otherwise = known ? judge(this.options, request) : { status: 404, body: "Not Found" };
    const answer = forcedToHttps(this.options, request) ?? otherwise;
    this.control.log("answer", { status: answer.status ?? 101 });
    if (answer.status) return refuse(raw, answer);
    const key = createHash("sha1").update(request.headers["sec-websocket-key"] + ACCEPT).digest("base64");
    const lines = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: Upgrade"];
    lines.push(`sec-websocket-accept: ${key}`);
    if (answer.chosen) lines.push(`sec-websocket-protocol: ${answer.chosen}`);
    raw.write(`${lines.join("\r\n")}\r\n\r\n`);
    const socket = new Socket(this, (this.ids += 1), raw, answer.user);
    this.sockets.add(socket);
    this.control.log("open", { id: socket.id, user: answer.user });
    if (head.length > 0) socket.bytes(head);
    return undefined;
  }

  /** SIGTERM: all sockets are closed, then the port. */
  shutdown() {
    for (const socket of [...this.sockets]) socket.close(this.closes.shutdown);
    setTimeout(() => process.exit(0), 150);
  }
}

/** A refusal; the connection stays open for the next request, as HTTP/1.1 has it. */
function refuse(raw, { status, body = "", headers = {} }) {
  const reasons = { 301: "Moved Permanently", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 500: "Internal Server Error" };
  const lines = [`HTTP/1.1 ${status} ${reasons[status] ?? "Status"}`];
  const all = { "cache-control": "max-age=0, private, must-revalidate", ...headers };
  for (const [name, value] of Object.entries(all)) lines.push(`${name}: ${value}`);
  lines.push(`content-length: ${Buffer.byteLength(body)}`);
  raw.write(`${lines.join("\r\n")}\r\n\r\n${body}`);
  raw.on("end", () => raw.end());
  raw.resume();
  setTimeout(() => raw.destroy(), 60_000).unref();
}

const [port = "0", options = "{}"] = process.argv.slice(2);
const app = new App(JSON.parse(options));
app.server.listen(Number(port), "127.0.0.1", () => {
  console.log(`listening on ${app.server.address().port}`);
});
process.on("SIGTERM", () => app.shutdown());
