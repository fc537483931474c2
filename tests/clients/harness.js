// Checks by name, and a `portcullis dev` to run them against.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

let passed = 0;
let failed = 0;

/** Runs one check; a check that throws has failed. */
export async function check(name, body) {
  const begun = Date.now();
  try {
    await within(60_000, body(), "the check took too long");
    passed += 1;
    console.log(`ok    ${name} (${Date.now() - begun} ms)`);
  } catch (error) {
    failed += 1;
    const why = String(error.stack ?? error).replaceAll("\n", "\n      ");
    console.log(`FAIL  ${name}\n      ${why}`);
  }
}

/** Prints the sums; returns the exit code. */
export function summary() {
  console.log(`${passed} passed, ${failed} failed`);
  return failed === 0 && passed > 0 ? 0 : 1;
}

export function within(milliseconds, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} (${milliseconds} ms)`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Asks until `ask` returns something true, and returns that. */
export async function eventually(ask, what, milliseconds = 5_000) {
  const end = Date.now() + milliseconds;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`not within ${milliseconds} ms: ${what}`);
    await pause(50);
  }
}

/** A running `portcullis dev` on free ports. */
export class Gateway {
  static async start() {
    const gateway = new Gateway();
    const ports = ["--plain-port", "0", "--tls-port", "0", "--admin-port", "0"];
    gateway.process = spawn(process.env.PORTCULLIS_BIN, ["dev", ...ports]);
    gateway.out = "";
    gateway.log = "";
    gateway.process.stderr.on("data", (bytes) => (gateway.log += bytes));
    gateway.ended = new Promise((resolve) => {
      gateway.process.on("exit", (code, signal) => resolve(code ?? signal));
      gateway.process.on("error", (error) => resolve(String(error)));
    });
    gateway.ended.then((how) => {
      if (gateway.stopping) return;
      const last = gateway.log.trimEnd().split("\n").slice(-12).join("\n");
      console.log(`the gateway ended by itself, or was ended by others: ${how}\n${last}`);
    });
    const lines = createInterface({ input: gateway.process.stdout });
    const ready = new Promise((resolve) => {
      lines.on("line", (line) => {
        gateway.out += `${line}\n`;
        if (line.includes("Ctrl-C")) resolve("ready");
      });
    });
    const outcome = await within(20_000, Promise.race([ready, gateway.ended]), "no gateway");
    if (outcome !== "ready") throw new Error(`portcullis dev ended: ${outcome}\n${gateway.log}`);
    gateway.admin = gateway.out.match(/page\s+(http:\S+)\//)[1];
    Object.assign(gateway, await gateway.json("/dev/tokens.json"));
    return gateway;
  }

  async json(path) {
    const answer = await fetch(this.admin + path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  }

  /** A fresh token. */
  async token(kind, subject = "alice") {
    if (kind === "none") return "";
    const { tokens } = await this.json("/dev/tokens.json");
    return tokens.find((entry) => entry.subject === subject)[kind];
  }

  /** Live numbers that are no older than this call: they are summed once a second. */
  async live() {
    await pause(1_150);
    return this.json("/live.json");
  }

  async stop(signal = "SIGTERM") {
    this.stopping = true;
    this.process.kill(signal);
    return within(10_000, this.ended, "the gateway does not stop");
  }
}
