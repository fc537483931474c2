// A gateway between a client and a test application: its settings, and what a check asks of it.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../clients/harness.js";
import { AUTHORITY, CERTIFICATE, KEY, freePort, launch } from "./app.js";
import { SECRET } from "./tokens.js";

/** How long an application has for the message that accepts a client. */
export const ACCEPTED_WITHIN_MS = 3_000;

/** A `[[auth]]` block by what the route says of it. */
const AUTH = {
  none: () => "",
  handshake: () => 'kind = "upstream"\naccepted_by = "handshake"',
  message: (lines) => `kind = "upstream"\naccepted_by = "message"\n${lines}`,
  jwt: (lines) => `kind = "jwt"\nleeway = "0s"\nkeys = [{ secret = "${SECRET}" }]\n${lines}`,
};

/**
 * The settings for one application. `route` has: `auth` (a name above), `authLines`, `routeLines`,
 * `backendLines`, all TOML, and `origins`, the pages that may connect beside its
 * own; with `tls` its listener is a TLS one.
 */
function settings(app, ports, route) {
  const { auth = "none", authLines = "", routeLines = "", backendLines = "", origins = [], tls } = route;
  const pages = [`http${tls ? "s" : ""}://127.0.0.1:${ports.plain}`, "https://app.example.com", ...origins];
  const block = auth === "none" ? "" : `[[auth]]\nname = "who"\n${AUTH[auth](authLines)}\n`;
  return `
[gateway]
workers = 1
admin = "127.0.0.1:${ports.admin}"
admin_socket = "admin.sock"
close_log = "closes.jsonl"
[limits]
connections_max = 500
unauthenticated_max = 250
${auth === "message" ? `[deadlines]\nauthenticate = "${ACCEPTED_WITHIN_MS}ms"` : ""}
[[listener]]
address = "127.0.0.1:${ports.plain}"
${tls ? `tls = { certificate = "${CERTIFICATE}", key = "${KEY}" }` : ""}
[[backend]]
name = "app"
kind = "websocket"
endpoints = ["ws${app.secure}://${app.address}"]
${app.secure ? `ca_file = "${AUTHORITY}"` : ""}
${backendLines}
${block}
[[route]]
path = "/*"
origins = ${JSON.stringify(pages)}
origin_absent = "allow"
auth = "${auth === "none" ? "none" : "who"}"
backend = "app"
${routeLines}
`;
}

export class Gateway {
  static async start(app, route = {}) {
    const gateway = new Gateway();
    const ports = { admin: await freePort(), plain: await freePort() };
    Object.assign(gateway, { ports, secure: route.tls ? "s" : "" });
    gateway.folder = mkdtempSync(join(tmpdir(), "portcullis-servers-"));
    writeFileSync(join(gateway.folder, "gateway.toml"), settings(app, ports, route));
    gateway.log = "";
    const args = ["run", "--config", "gateway.toml"];
    gateway.process = launch(gateway, process.env.PORTCULLIS_BIN, args, { cwd: gateway.folder });
    const ready = async () => {
      if (gateway.process.exitCode !== null) throw new Error(`the gateway ended\n${gateway.log}`);
      const answer = await fetch(`http://127.0.0.1:${ports.admin}/readyz`).catch(() => null);
      return answer?.ok;
    };
    try {
      await eventually(ready, "the gateway is ready", 15_000);
    } catch (error) {
      await gateway.end();
      throw new Error(`${error.message}\n${gateway.log}`);
    }
    return gateway;
  }

  get address() {
    return `127.0.0.1:${this.ports.plain}`;
  }

  /** Refuses a subject's tokens, and ends its open connections. */
  async revoke(subject) {
    const body = JSON.stringify({ subject, lapses_in: 3600 });
    const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
    const socketPath = join(this.folder, "admin.sock");
    const status = await new Promise((resolve, reject) => {
      const asked = request({ socketPath, path: "/revocations", method: "POST", headers });
      asked.on("response", (response) => {
        response.resume();
        resolve(response.statusCode);
      });
      asked.on("error", reject);
      asked.end(body);
    });
    if (status !== 200) throw new Error(`revoke: ${status}`);
  }

  /** The lines of the close log. */
  closes() {
    try {
      const text = readFileSync(join(this.folder, "closes.jsonl"), "utf8");
      return text.split("\n").filter((line) => line).map((line) => JSON.parse(line));
    } catch {
      return [];
    }
  }

  /** What a failed check shows. */
  trace() {
    const closes = this.closes().slice(-5).map((line) => JSON.stringify(line));
    return [...this.log.trimEnd().split("\n").slice(-12), ...closes].join("\n");
  }

  async end() {
    this.process.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}
