// A test application as a process of its own, on a port that it keeps when it is started again.

import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { eventually, within } from "../clients/harness.js";
import { TARGET } from "./packages.js";
import { SECRET } from "./tokens.js";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "apps");

export const CERTIFICATE = join(TARGET, "tls", "server.pem");
export const KEY = join(TARGET, "tls", "server.key");
export const AUTHORITY = join(TARGET, "tls", "ca.pem");

/** How each application is started; with `tls` among its options it listens with TLS alone. */
const COMMANDS = {
  phoenix: (port, options) => ["node", "phoenix.js", port, JSON.stringify(options)],
  ws: (port) => ["node", "ws_echo.js", port],
  graphql: (port, options) => ["node", "graphql.js", port, JSON.stringify(options)],
  channels: (port, { tls }) => [
    join(TARGET, "venv", "bin", "daphne"),
    ...(tls
      ? ["--endpoint", `ssl:${port}:interface=127.0.0.1:privateKey=${KEY}:certKey=${CERTIFICATE}`]
      : ["--bind", "127.0.0.1", "--port", port]),
    ...["--ping-interval", "1", "--ping-timeout", "3", "channels_app:application"],
  ],
  cable: (port, { tls }) => {
    const bind = tls
      ? `ssl://127.0.0.1:${port}?cert=${CERTIFICATE}&key=${KEY}`
      : `tcp://127.0.0.1:${port}`;
    return ["puma", "--bind", bind, "--threads", "2:8", "cable.ru"];
  },
};

// No process outlives the checks, however these end.
const children = new Set();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
});

/** A child process; what it says ends in `log` of `owner`. */
export function launch(owner, command, args, options) {
  const child = spawn(command, args, options);
  children.add(child);
  child.on("exit", () => children.delete(child));
  for (const stream of ["stdout", "stderr"]) child[stream].on("data", (bytes) => (owner.log += bytes));
  return child;
}

const ports = new Set();

/** A port that no other caller of this process gets. */
export async function freePort() {
  for (;;) {
    const server = createServer();
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address();
    await new Promise((resolve) => server.close(resolve));
    if (ports.has(port)) continue;
    ports.add(port);
    return port;
  }
}

export class App {
  static async start(name, options = {}) {
    const app = new App();
    Object.assign(app, { name, options, port: await freePort(), log: "" });
    await app.begin();
    return app;
  }

  async begin() {
    const [command, ...args] = COMMANDS[this.name](String(this.port), this.options);
    const env = { ...process.env, TOKEN_SECRET: SECRET, PYTHONDONTWRITEBYTECODE: "1", RACK_ENV: "production" };
    if (this.options.tls) Object.assign(env, { TLS_CERTIFICATE: CERTIFICATE, TLS_KEY: KEY });
    this.process = launch(this, command, args, { cwd: FOLDER, env });
    this.ended = new Promise((resolve) => {
      this.process.on("exit", resolve);
      this.process.on("error", (error) => {
        this.log += error;
        resolve();
      });
    });
    const ready = () => this.events().then(() => true, () => this.process.exitCode !== null);
    try {
      await eventually(ready, `${this.name} answers`, 25_000);
      await this.events();
    } catch (error) {
      this.process.kill("SIGKILL");
      throw new Error(`${error.message}\n${this.log}`);
    }
  }

  get address() {
    return `127.0.0.1:${this.port}`;
  }

  get secure() {
    return this.options.tls ? "s" : "";
  }

  /** Runs an action of the application, or reads its log. */
  async act(name, parameters = {}) {
    const query = new URLSearchParams(parameters);
    const answer = await fetch(`http${this.secure}://${this.address}/_control/${name}?${query}`);
    if (!answer.ok) throw new Error(`${this.name} /_control/${name}: ${answer.status}`);
    return answer.json();
  }

  /** What it received since it was started, or of one kind of this. */
  async events(what) {
    const events = await this.act("events");
    return what ? events.filter((event) => event.what === what) : events;
  }

  /** Waits until `find` finds something among the events of a kind. */
  saw(what, find = () => true, milliseconds = 5_000) {
    const ask = async () => (await this.events(what)).find(find);
    return eventually(ask, `${this.name} saw: ${what}`, milliseconds);
  }

  async stop(signal = "SIGTERM") {
    this.process.kill(signal);
    await within(10_000, this.ended, `${this.name} does not stop`);
  }

  end() {
    this.process.kill("SIGKILL");
  }
}
