// Phoenix's channels over one socket, in the V2 serializer: what a transport (WebSocket or long
// polling) hands in and gets back.
//
// Topics: `room:*` is open to all; `private:*` with a valid `token` in the join's payload;
// `closed:*` refuses, `raise:*` raises; no other topic is known. Events in a joined topic: `echo`
// answers with its payload, `say` reaches all who joined, `crash` and `stop` end the channel.

import { subjectOf } from "../tokens.js";

/** What makes the transport close with 1011. */
export class BadMessage extends Error {}

function parse(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    throw new BadMessage("not JSON");
  }
  const strings = (values) => values.every((value) => typeof value === "string");
  if (!Array.isArray(message) || message.length !== 5 || !strings(message.slice(2, 4))) {
    throw new BadMessage("not a message of the V2 serializer");
  }
  const [joinRef, ref, topic, event, payload] = message;
  return { joinRef, ref, topic, event, payload };
}

/** A binary push: its kind, four sizes, four texts, the payload. */
function parseBinary(bytes) {
  if (bytes[0] !== 0 || bytes.length < 5) throw new BadMessage("not a push");
  let at = 5;
  const texts = [1, 2, 3, 4].map((index) => {
    const text = bytes.subarray(at, at + bytes[index]);
    at += bytes[index];
    return text.toString();
  });
  if (at > bytes.length) throw new BadMessage("a push that is cut off");
  const [joinRef, ref, topic, event] = texts;
  return { joinRef, ref, topic, event, payload: bytes.subarray(at) };
}

function binaryReply({ joinRef, ref, topic, payload }) {
  const texts = [joinRef, ref, topic, "ok"].map((text) => Buffer.from(text));
  const head = Buffer.from([1, ...texts.map((text) => text.length)]);
  return Buffer.concat([head, ...texts, payload]);
}

/** The channels that joined a topic, over all sockets of this server. */
export class Topics {
  joined = new Map();

  add(topic, channels) {
    if (!this.joined.has(topic)) this.joined.set(topic, new Set());
    this.joined.get(topic).add(channels);
  }

  remove(topic, channels) {
    this.joined.get(topic)?.delete(channels);
  }

  say(topic, event, payload) {
    const all = this.joined.get(topic) ?? [];
    for (const channels of all) channels.push(null, null, topic, event, payload);
    return all.size ?? 0;
  }
}

export class Channels {
  /** `send` takes a text or bytes. */
  constructor({ version, topics, user, send }) {
    Object.assign(this, { version, topics, user, send });
    this.joins = new Map();
  }

  push(...message) {
    this.send(JSON.stringify(message));
  }

  #reply({ joinRef, ref, topic }, status, response) {
    this.push(joinRef, ref, topic, "phx_reply", { status, response });
  }

  #end(topic, event, payload = {}) {
    const joinRef = this.joins.get(topic);
    this.joins.delete(topic);
    this.topics.remove(topic, this);
    this.push(joinRef, joinRef, topic, event, payload);
  }

  receive(data) {
    const message = typeof data === "string" ? parse(data) : parseBinary(data);
    const { topic, event } = message;
    if (topic === "phoenix" && event === "heartbeat") return this.#reply(message, "ok", {});
    if (event === "phx_join") return this.#join(message);
    if (!this.joins.has(topic)) {
      return this.#reply(message, "error", { reason: "unmatched topic" });
    }
    return this.#event(message);
  }

  #join(message) {
    const { topic, payload } = message;
    const refuse = (reason) => this.#reply(message, "error", { reason });
    const [kind] = topic.split(":");
    if (!topic.includes(":") || !["room", "private", "closed", "raise"].includes(kind)) {
      return refuse("unmatched topic");
    }
    if (this.joins.has(topic)) this.#end(topic, "phx_close");
    if (kind === "raise") return refuse("join crashed");
    if (kind === "closed") return refuse("unauthorized");
    const user = kind === "private" ? subjectOf(payload?.token) : this.user;
    if (kind === "private" && user === null) return refuse("unauthorized");
    this.joins.set(topic, message.joinRef);
    this.topics.add(topic, this);
    return this.#reply(message, "ok", { user });
  }

  #event(message) {
    const { topic, event, payload, ref } = message;
    if (event === "phx_leave") {
      this.#reply(message, "ok", {});
      return this.#end(topic, "phx_close");
    }
    if (event === "echo") {
      if (Buffer.isBuffer(payload)) return this.send(binaryReply(message));
      return this.#reply(message, "ok", payload);
    }
    if (event === "say") {
      this.topics.say(topic, "said", payload);
      return ref === null ? undefined : this.#reply(message, "ok", {});
    }
    if (event === "stop") return this.#end(topic, "phx_close");
    // An event that the channel has no clause for crashes it, as does `crash`.
    const crash = this.version === "1.7" ? {} : { reason: "channel_crash" };
    return this.#end(topic, "phx_error", crash);
  }

  /** The transport is gone. */
  end() {
    for (const topic of this.joins.keys()) this.topics.remove(topic, this);
  }
}
