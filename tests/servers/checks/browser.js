// phoenix.js in Chromium: with and without its fallback to long polling.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { eventually, pause } from "../../clients/harness.js";
import { packages } from "../packages.js";
import { at } from "../place.js";
import { forged, token } from "../tokens.js";

const VERSIONS = ["1.7.21", "1.8.15", "1.8.16"];

/** The pages' own server: a page for each version of the library. */
async function pages() {
  const server = createServer((request, response) => {
    const version = request.url.slice(1);
    const script = VERSIONS.includes(version)
      ? readFileSync(packages.resolve(`phoenix-${version}`).replace("phoenix.cjs.js", "phoenix.js"))
      : "";
    response.writeHead(200, { "content-type": "text/html; charset=utf-8" });
    response.end(`<!doctype html><title>page</title><script>${script}</script>`);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  return `http://127.0.0.1:${server.address().port}`;
}

/** In the page: a socket that remembers what happened to it, and one channel. */
function connect({ url, credential, options }) {
  const socket = new Phoenix.Socket(url, { ...credential, ...options, timeout: 3_000 });
  const seen = { opens: 0, closes: [], errors: 0, messages: [], joined: null };
  Object.assign(window, { socket, seen });
  socket.onOpen(() => (seen.opens += 1));
  socket.onClose(({ code, reason }) => seen.closes.push([code, reason]));
  socket.onError(() => (seen.errors += 1));
  socket.onMessage(({ topic, event, payload }) => seen.messages.push([topic, event, payload?.reason]));
  socket.connect();
  window.channel = socket.channel("room:lobby", {});
  window.channel.join().receive("ok", () => (seen.joined = "ok")).receive("error", () => (seen.joined = "error"));
}

/** In the page: pushes text and bytes, and gives back what came. */
async function echo() {
  const ask = (payload) => new Promise((resolve, reject) => {
    const push = window.channel.push("echo", payload);
    push.receive("ok", resolve).receive("error", reject).receive("timeout", reject);
  });
  const text = await ask({ text: "ü🚪" });
  if (!window.binary) return { text };
  const bytes = new Uint8Array(await ask(new Uint8Array([0, 1, 255]).buffer));
  return { text, bytes: [...bytes] };
}

class Tab {
  static async open(browser, origin, version) {
    const tab = new Tab();
    tab.page = await (await browser.newContext()).newPage();
    Object.assign(tab, { sockets: 0, polls: 0 });
    tab.page.on("websocket", () => (tab.sockets += 1));
    tab.page.on("request", (request) => (tab.polls += request.url().includes("/longpoll") ? 1 : 0));
    await tab.page.goto(`${origin}/${version}`);
    return tab;
  }

  connect(place, version, value, options = {}) {
    const params = version === "1.7.21" || options.inQuery;
    const credential = params ? { params: { token: value } } : { authToken: value };
    return this.page.evaluate(connect, { url: place.url("/socket"), credential, options });
  }

  seen() {
    return this.page.evaluate(() => window.seen);
  }

  until(what, find, milliseconds = 10_000) {
    return eventually(async () => find(await this.seen()), what, milliseconds);
  }

  async echoes(binary) {
    await this.page.evaluate((value) => (window.binary = value), binary);
    const { text, bytes } = await this.page.evaluate(echo);
    assert.deepEqual(text, { text: "ü🚪" });
    if (binary) assert.deepEqual(bytes, [0, 1, 255]);
  }

  close() {
    return this.page.context().close();
  }
}

async function talks(tab, place, version, options) {
  await tab.connect(place, version, token(), { ...options, heartbeatIntervalMs: 500 });
  await tab.until("joined", ({ joined }) => joined === "ok");
  await tab.echoes(true);
  const beats = async () => {
    const all = await place.app.events("message");
    return all.filter(({ text }) => text?.includes('"heartbeat"')).length >= 3;
  };
  await eventually(beats, "three heartbeats");
  const { opens, closes } = await tab.seen();
  assert.deepEqual([opens, closes, tab.sockets, tab.polls], [1, [], 1, 0]);
  await tab.page.evaluate(() => window.socket.disconnect(undefined, 4000, "enough"));
  const close = await place.app.saw("close");
  assert.deepEqual([close.code, close.reason], [4000, "enough"]);
}

/** Where no WebSocket opens, long polling carries the same channel. */
async function fallsBack(tab, place, version) {
  await tab.connect(place, version, token(), { longPollFallbackMs: 300 });
  await tab.until("joined", ({ joined }) => joined === "ok", 15_000);
  await tab.echoes(false);
  assert.ok(tab.polls >= 3);
}

async function restarts(tab, place, version, options) {
  await tab.connect(place, version, token(), options);
  await tab.until("joined", ({ joined }) => joined === "ok");
  await place.app.stop();
  const { closes } = await tab.until("a close", (seen) => seen.closes.length > 0 && seen);
  assert.equal(closes[0][0], 1012);
  await place.app.begin();
  // A client that connected while the server stopped may have to wait for the gateway's close.
  const again = () => tab.echoes(true).then(() => true, () => false);
  await eventually(again, "joined again", 25_000);
}

/** What happens today to a client that `connect/3` refuses: nothing tells it why, nothing stops it. */
async function refusedDirectly(tab, place, version) {
  await tab.connect(place, version, forged(), { inQuery: true });
  await eventually(() => tab.sockets >= 4, "four connections");
  const { opens, closes } = await tab.seen();
  assert.equal(opens, 0);
  assert.ok(closes.every(([code]) => code === 1006));
}

/** Behind the gateway the page hears why, and does not return; nor does it poll. */
async function refusedThrough(tab, place, version, options) {
  await tab.connect(place, version, forged(), { ...options, inQuery: true });
  const { closes } = await tab.until("a close", (seen) => seen.closes.length > 0 && seen, 15_000);
  assert.deepEqual(closes[0], [1000, "token_forbidden"]);
  const { messages } = await tab.seen();
  assert.ok(messages.some(([, , reason]) => reason === "token_forbidden"), JSON.stringify(messages));
  await pause(3_000);
  assert.equal(tab.polls, 0);
  const most = version === "1.8.16" ? 3 : 1;
  assert.ok(tab.sockets <= most, `${tab.sockets} connections`);
}

export async function browserChecks() {
  const { chromium } = packages("playwright-core");
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
    chromiumSandbox: false,
  });
  const origin = await pages();
  const fallbacks = [["", {}], [", with a fallback", { longPollFallbackMs: 1_000 }]];
  const checks = VERSIONS.flatMap((version) => {
    const server =
      version === "1.7.21"
        ? { version: "1.7", adapter: "cowboy" }
        : { version: "1.8", adapter: "bandit", authToken: true };
    const route = { auth: "handshake", routeLines: 'dialect = "phoenix"', origins: [origin] };
    const run = (name, body, { only, options = server } = {}) => {
      const wants = { app: "phoenix", options: { ...options, checkOrigin: [origin] }, route };
      return at(
        wants,
        `Chromium, phoenix.js ${version}: ${name}`,
        async (place) => {
          const tab = await Tab.open(browser, origin, version);
          try {
            await body(tab, place);
          } finally {
            await tab.close();
          }
        },
        only,
      );
    };
    return [
      ...fallbacks.flatMap(([name, more]) => [
        run(`talks${name}`, (tab, place) => talks(tab, place, version, more)),
        run(
          `a refused connect is explained${name}`,
          (tab, place) => refusedThrough(tab, place, version, more),
          { only: "gateway", options: { ...server, authToken: false } },
        ),
      ]),
      run("a restart of the server", (tab, place) => restarts(tab, place, version, {})),
      run("a refused connect is tried without end", (tab, place) => refusedDirectly(tab, place, version), {
        only: "direct",
        options: { ...server, authToken: false },
      }),
      run("long polling where no WebSocket opens", (tab, place) => fallsBack(tab, place, version), {
        only: "direct",
        options: { ...server, upgrades: false },
      }),
    ];
  });
  await Promise.all(checks);
  await browser.close();
  return [];
}
