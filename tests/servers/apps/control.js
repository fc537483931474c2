// What every test application offers beside its sockets: the log of what it received, and a way
// to make it act. Checks reach these paths on the application's own address, never through a
// gateway.
//
//   GET /_control/events             what the application received, in order, as JSON
//   GET /_control/clear              forget it
//   GET /_control/NAME?KEY=VALUE     an action of the application's own; answers a number
//
// Events: request (method, target, headers, peer), answer (status), open, message, close (code or
// null, reason) and end (the connection is over; `clean` says whether a close frame came first).

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createSecureServer } from "node:https";

/** A server by HTTP, or where the environment names a certificate, by HTTPS. */
export function webServer(handler) {
  const { TLS_CERTIFICATE: cert, TLS_KEY: key } = process.env;
  if (!cert) return createServer(handler);
  return createSecureServer({ cert: readFileSync(cert), key: readFileSync(key) }, handler);
}

export class Control {
  constructor(actions = {}) {
    this.actions = actions;
    this.events = [];
  }

  log(what, details = {}) {
    this.events.push({ what, at: Date.now(), ...details });
  }

  request({ method, url, rawHeaders, socket, httpVersion }) {
    const headers = [];
    for (let i = 0; i < rawHeaders.length; i += 2) {
      headers.push([rawHeaders[i].toLowerCase(), rawHeaders[i + 1]]);
    }
    const peer = `${socket.remoteAddress}:${socket.remotePort}`;
    this.log("request", { method, target: url, headers, peer, version: httpVersion });
  }

  message(id, data) {
    const text = typeof data === "string";
    const shown = text ? data.slice(0, 300) : data.subarray(0, 100).toString("base64");
    this.log("message", { id, [text ? "text" : "binary"]: shown, size: data.length });
  }

  /** Answers a request for a control path; false if it is for the application. */
  handle(request, response) {
    const url = new URL(request.url, "http://app");
    if (!url.pathname.startsWith("/_control/")) return false;
    const name = url.pathname.slice("/_control/".length);
    let body;
    if (name === "events") {
      body = this.events;
    } else if (name === "clear") {
      body = this.events.length;
      this.events = [];
    } else if (this.actions[name]) {
      body = this.actions[name](Object.fromEntries(url.searchParams)) ?? 0;
    } else {
      response.writeHead(404).end();
      return true;
    }
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(body));
    return true;
  }
}
