// Phoenix's long polling: a session by a token of the server's own, GETs that wait for messages,
// POSTs that bring them. The status that counts is in the JSON body; HTTP's own is always 200.

import { randomBytes } from "node:crypto";
import { BadMessage, Channels } from "./phoenix_channels.js";
import { judgePoll } from "./phoenix_handshake.js";

class Session {
  constructor(polls, user) {
    this.polls = polls;
    this.token = randomBytes(24).toString("base64url");
    this.queue = [];
    const { options, topics } = polls.app;
    const send = (data) => this.#send(data);
    this.channels = new Channels({ version: options.version, topics, user, send });
    this.keep();
  }

  /** Without a poll the session dies after one and a half windows. */
  keep() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.end(), this.polls.app.options.window * 1.5);
  }

  end() {
    clearTimeout(this.timer);
    this.channels.end();
    this.polls.sessions.delete(this.token);
    this.polls.app.control.log("end", { id: "longpoll", clean: false });
  }

  #send(data) {
    this.queue.push(typeof data === "string" ? data : Buffer.from(data).toString("base64"));
    this.answer?.();
  }

  /** Answers a GET: what waits now, or the first that comes within the window. */
  poll(response) {
    this.keep();
    const finish = (status) => {
      clearTimeout(window);
      this.answer = null;
      const messages = this.queue.splice(0);
      this.polls.say(response, { status, token: this.token, messages });
    };
    const window = setTimeout(() => finish(204), this.polls.app.options.window);
    this.answer = () => finish(200);
    if (this.queue.length > 0) this.answer();
  }
}

export class LongPolls {
  constructor(app) {
    this.app = app;
    this.sessions = new Map();
  }

  say(response, body) {
    const headers = { "content-type": "application/json", "access-control-allow-origin": "*" };
    if (this.app.options.version !== "1.7") headers["cache-control"] = "no-store";
    response.writeHead(200, headers).end(JSON.stringify(body));
  }

  handle(request, response) {
    if (request.method === "OPTIONS") {
      const asked = request.headers["access-control-request-headers"] ?? "";
      const headers = { "access-control-allow-origin": "*", "access-control-allow-headers": asked };
      response.writeHead(200, headers).end();
      return;
    }
    const { searchParams } = new URL(request.url, "http://app");
    // The last one: an application may have a parameter of this name of its own.
    const given = searchParams.getAll("token").at(-1) ?? request.headers["x-phoenix-longpoll-token"];
    const session = this.sessions.get(given);
    if (request.method === "POST") this.#post(request, response, session);
    else if (request.method !== "GET") response.writeHead(400).end();
    else if (session) session.poll(response);
    else this.#open(request, response);
  }

  /** A GET without a living session opens one: 410 with its token. */
  #open(request, response) {
    const answer = judgePoll(this.app.options, request);
    this.app.control.log("answer", { status: answer.status ?? 410 });
    if (answer.status) return this.say(response, { status: answer.status });
    const session = new Session(this, answer.user);
    this.sessions.set(session.token, session);
    this.app.control.log("open", { id: "longpoll", user: answer.user });
    return this.say(response, { status: 410, token: session.token, messages: [] });
  }

  #post(request, response, session) {
    const parts = [];
    request.on("data", (bytes) => parts.push(bytes));
    request.on("end", () => {
      if (!session) return this.say(response, { status: 410 });
      session.keep();
      const ndjson = (request.headers["content-type"] ?? "").startsWith("application/x-ndjson");
      const body = Buffer.concat(parts).toString();
      const messages = ndjson ? body.split("\n").filter((line) => line) : [body];
      try {
        for (const text of messages) {
          const binary = !text.startsWith("[");
          this.app.control.message("longpoll", text);
          session.channels.receive(binary ? Buffer.from(text, "base64") : text);
        }
      } catch (error) {
        if (!(error instanceof BadMessage)) throw error;
        session.end();
        return this.say(response, { status: 500 });
      }
      return this.say(response, { status: 200 });
    });
  }
}
