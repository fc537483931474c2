// A cookie and pages of other origins in a real browser. All pages are of one site, so SameSite
// keeps the cookie from none of them: only the gateway's list of origins does.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { WebSocketServer } from "ws";
import { check, eventually, pause } from "./harness.js";

const SITE = "gate.test";
const SECRET = "0123456789abcdef0123456789abcdef";

/** Listens on a port that the kernel chooses. */
function listen(server) {
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve(server.address().port));
  });
}

async function freePort() {
  const server = createServer();
  const port = await listen(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function token() {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + 600;
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ sub: "ada", exp })}`;
  return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
}

/** A web server of the site: its login page sets the cookie, whatever the host name. */
async function pages(cookie) {
  const server = createServer((request, response) => {
    const headers = { "Content-Type": "text/html" };
    if (request.url === "/login") {
      const rules = `Domain=${SITE}; Path=/; HttpOnly; SameSite=Strict`;
      headers["Set-Cookie"] = `session=${cookie}; ${rules}`;
    }
    response.writeHead(200, headers).end("<!doctype html><title>page</title>");
  });
  return { server, port: await listen(server) };
}

/** A WebSocket server that lets everybody in, and remembers what browsers sent. */
async function control() {
  const http = createServer();
  const seen = [];
  new WebSocketServer({ server: http }).on("connection", (_, { headers }) => {
    seen.push({ origin: headers.origin, cookie: headers.cookie });
  });
  return { server: http, port: await listen(http), seen };
}

class Gateway {
  static async start(origins) {
    const gateway = new Gateway();
    const [listener, admin, backend] = [await freePort(), await freePort(), await freePort()];
    Object.assign(gateway, { listener, admin });
    const route = (path, list) => `
[[route]]
path = "${path}"
origins = ${JSON.stringify(list)}
origin_absent = "refuse"
auth = "cookie"
backend = "echo"
`;
    const config = `
[gateway]
workers = 1
admin = "127.0.0.1:${admin}"
[[listener]]
address = "127.0.0.1:${listener}"
[[auth]]
name = "cookie"
kind = "jwt"
carriers = ["cookie:session"]
keys = [{ secret = "${SECRET}" }]
[[backend]]
name = "echo"
endpoints = ["127.0.0.1:${backend}"]
${route("/app", origins.slice(0, 1))}${route("/all", origins)}`;
    const path = join(mkdtempSync(join(tmpdir(), "portcullis-origins-")), "portcullis.toml");
    writeFileSync(path, config);
    const run = (...args) => spawn(process.env.PORTCULLIS_BIN, args, { stdio: "ignore" });
    gateway.processes = [
      run("echo-backend", "--listen", `127.0.0.1:${backend}`),
      run("run", "--config", path),
    ];
    const ready = async () => (await gateway.metric('portcullis_links{state="ready"}')) === 1;
    await eventually(ready, "the link is ready", 15_000);
    return gateway;
  }

  async metric(series) {
    const answer = await fetch(`http://127.0.0.1:${this.admin}/metrics`).catch(() => null);
    const lines = answer ? (await answer.text()).split("\n") : [];
    const line = lines.find((line) => line.startsWith(`${series} `));
    return line ? Number(line.slice(series.length + 1)) : 0;
  }

  /** How many connections ended for a cause, no older than this call. */
  async closes(cause) {
    await pause(1_150);
    return this.metric(`portcullis_closes_total{cause="${cause}"}`);
  }

  stop() {
    for (const child of this.processes) child.kill("SIGKILL");
  }
}

/** In the page: connects, says hello, tells what came of it. */
function connect(url) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url);
    const outcome = { opened: false };
    socket.onopen = () => {
      outcome.opened = true;
      socket.send("hello");
    };
    socket.onmessage = ({ data }) => {
      outcome.message = data;
      socket.close(1000);
    };
    socket.onclose = ({ code }) => resolve({ ...outcome, code });
    // The control server answers nothing.
    setTimeout(() => socket.close(1000), 2_000);
  });
}

export async function originChecks() {
  const cookie = token();
  const [first, second] = [await pages(cookie), await pages(cookie)];
  const app = `http://app.${SITE}:${first.port}`;
  const others = [
    ["another subdomain", `http://evil.${SITE}:${first.port}`],
    ["another port of the same host", `http://app.${SITE}:${second.port}`],
    ["the parent domain", `http://${SITE}:${first.port}`],
    ["a longer name", `http://app.${SITE.replace(".", "-")}.${SITE}:${first.port}`],
  ];
  const recorder = await control();
  const gateway = await Gateway.start([app, ...others.map(([, origin]) => origin)]);
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--no-first-run",
      "--disable-background-networking",
      `--host-resolver-rules=MAP ${SITE} 127.0.0.1, MAP *.${SITE} 127.0.0.1`,
    ],
    chromiumSandbox: false,
  });
  try {
    const page = await (await browser.newContext()).newPage();
    const at = (port, path = "/") => `ws://gateway.${SITE}:${port}${path}`;
    const visit = async (origin, url) => {
      await page.goto(`${origin}/`);
      return page.evaluate(connect, url);
    };
    const served = { opened: true, message: "hello", code: 1000 };
    const sent = { cookie: `session=${cookie}` };

    await check("origin: without the cookie, the page of the list is refused as such", async () => {
      const { opened, message } = await visit(app, at(gateway.listener, "/app"));
      // Told in the dialect, after a 101: this page may know why.
      assert.deepEqual([opened, JSON.parse(message).reason], [true, "token_missing"]);
      assert.equal(await gateway.closes("token_missing"), 1);
    });
    await page.goto(`${app}/login`);
    await check("origin: the page of the list connects with its cookie", async () => {
      assert.deepEqual(await visit(app, at(gateway.listener, "/app")), served);
    });
    for (const [name, origin] of others) {
      await check(`origin: ${name} does not, although the browser sends the cookie`, async () => {
        const before = await gateway.closes("forbidden_origin");
        // It learns that its origin is not listed, and nothing of the cookie.
        const refused = await visit(origin, at(gateway.listener, "/app"));
        assert.deepEqual([refused.opened, JSON.parse(refused.message).reason], [true, "forbidden_origin"]);
        assert.equal(await gateway.closes("forbidden_origin"), before + 1);
        assert.equal(await gateway.closes("token_missing"), 1, "not for want of a cookie");
        // What the browser sent with it, as another server of the site saw it.
        recorder.seen.length = 0;
        await visit(origin, at(recorder.port));
        assert.deepEqual(recorder.seen, [{ origin, ...sent }]);
        // And to this gateway: where the list has this origin, the same cookie is let in.
        assert.deepEqual(await visit(origin, at(gateway.listener, "/all")), served);
      });
    }
  } finally {
    await browser.close();
    gateway.stop();
    for (const { server } of [first, second, recorder]) server.close();
  }
}
