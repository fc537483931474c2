// A `portcullis run` of its own with a route for each check, so that the checks can run beside
// each other and the gateway's own close log tells their connections apart.

import { spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "./harness.js";

const KEY = randomBytes(32).toString("hex");

/** A token that is over in so many seconds. */
export function token(seconds = 3600, key = KEY) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const signed = `${encode({ alg: "HS256" })}.${encode({ sub: "alice", exp: now + seconds })}`;
  return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
}

export const forged = () => token(3600, "x".repeat(64));

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

const HEAD = (ports, origin) => `
[gateway]
workers = 1
admin = "127.0.0.1:${ports.admin}"
close_log = "closes.jsonl"
[limits]
connections_max = 1000
unauthenticated_max = 500
[[listener]]
address = "127.0.0.1:${ports.plain}"
[[backend]]
name = "echo"
endpoints = ["127.0.0.1:${ports.backend}"]
[[backend]]
name = "down"
endpoints = ["127.0.0.1:${ports.down}"]
[[auth]]
name = "offered"
kind = "jwt"
carriers = ["subprotocol"]
keys = [{ secret = "${KEY}" }]
[[auth]]
name = "init"
kind = "jwt"
carriers = ["first-message:payload.token"]
leeway = "0s"
keys = [{ secret = "${KEY}" }]
[[auth]]
name = "connect"
kind = "jwt"
carriers = ["first-message:connect.token"]
leeway = "0s"
keys = [{ secret = "${KEY}" }]
${origin}
`;

export class DialectGateway {
  /** Routes are `[path, lines]`; `origins` are pages that may connect. */
  static async start(routes, origins = []) {
    const gateway = new DialectGateway();
    const ports = {};
    for (const name of ["admin", "plain", "backend", "down"]) ports[name] = await freePort();
    gateway.ports = ports;
    gateway.folder = mkdtempSync(join(tmpdir(), "portcullis-dialects-"));
    const list = JSON.stringify(origins);
    const blocks = routes.map(([path, lines]) => {
      const all = [`path = "${path}"`, `origins = ${list}`, 'origin_absent = "allow"', ...lines];
      if (!lines.some((line) => line.startsWith("backend"))) all.push('backend = "echo"');
      return `[[route]]\n${all.filter((line) => !line.startsWith("[")).join("\n")}\n`;
    });
    writeFileSync(join(gateway.folder, "gateway.toml"), HEAD(ports, blocks.join("")));
    gateway.log = "";
    const child = (...args) => {
      const process_ = spawn(process.env.PORTCULLIS_BIN, args, { cwd: gateway.folder });
      process_.stderr.on("data", (bytes) => (gateway.log += bytes));
      process_.stdout.on("data", (bytes) => (gateway.log += bytes));
      return process_;
    };
    gateway.backend = child("echo-backend", "--listen", `127.0.0.1:${ports.backend}`);
    gateway.process = child("run", "--config", "gateway.toml");
    const linked = async () => (await gateway.metric('portcullis_links{state="ready"}')) > 0;
    try {
      await eventually(() => linked().catch(() => false), "the gateway is ready", 15_000);
    } catch (error) {
      gateway.stop();
      throw new Error(`${error.message}\n${gateway.log}`);
    }
    return gateway;
  }

  url(path) {
    return `ws://127.0.0.1:${this.ports.plain}${path}`;
  }

  /** A number as the gateway counts it, over all workers. */
  async metric(name) {
    const answer = await fetch(`http://127.0.0.1:${this.ports.admin}/metrics`);
    const [metric, labels = ""] = name.split("{");
    const wanted = labels.replace("}", "");
    const lines = (await answer.text()).split("\n");
    const of = (line) => line.startsWith(`${metric}{`) || line.startsWith(`${metric} `);
    const values = lines.filter((line) => of(line) && line.includes(wanted));
    return values.reduce((sum, line) => sum + Number(line.split(" ").pop()), 0);
  }

  /** Connections that ended on a route: when they began and ended, and how. */
  ended(route) {
    let text = "";
    try {
      text = readFileSync(join(this.folder, "closes.jsonl"), "utf8");
    } catch {
      // Nothing has ended yet.
    }
    const lines = text.split("\n").filter((line) => line).map((line) => JSON.parse(line));
    return lines.filter((line) => line.route === route).map((line) => {
      const end = Date.parse(line.time);
      return { ...line, begun: end - line.age_ms, end };
    });
  }

  stop() {
    this.process.kill("SIGKILL");
    this.backend.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}
