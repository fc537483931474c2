// Drives the page in Debian's Chromium, as a person would: by labels, buttons and keys.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";
import { check, eventually, pause } from "./harness.js";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--ignore-certificate-errors",
];
const SHOTS = process.env.SCREENSHOTS;
const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const WIDE = { width: 1280, height: 1180 };
const NARROW = { width: 390, height: 844 };

/** The page, and what it complained of. */
class Tab {
  static async open(browser, gateway, options = {}) {
    const tab = new Tab();
    tab.gateway = gateway;
    tab.context = await browser.newContext({ viewport: WIDE, reducedMotion: "reduce", ...options });
    tab.page = await tab.context.newPage();
    tab.page.setDefaultTimeout(5_000);
    tab.complaints = [];
    tab.page.on("console", (message) => {
      if (message.type() === "error") tab.complaints.push(message.text());
    });
    tab.page.on("pageerror", (error) => tab.complaints.push(String(error)));
    await tab.page.goto(`${gateway.admin}/`);
    const subjects = tab.page.getByLabel("as", { exact: true }).locator("option");
    await subjects.first().waitFor({ state: "attached" });
    return tab;
  }

  async connect(kind, { as = "alice", by = "subprotocol", over = "plain TCP", to = "/chat" } = {}) {
    const { page } = this;
    await page.getByRole("radio", { name: kind }).check({ force: true });
    await page.getByLabel("as", { exact: true }).selectOption(as);
    await page.getByLabel("carried by", { exact: true }).selectOption({ label: by });
    await page.getByLabel("over", { exact: true }).selectOption({ label: over });
    await page.getByLabel("to", { exact: true }).selectOption(to);
    await page.getByRole("button", { name: "Connect", exact: true }).click();
  }

  async say(text) {
    await this.page.getByLabel("Message", { exact: true }).fill(text);
    await this.page.getByRole("button", { name: "Send" }).click();
  }

  /** Waits until the log has a line with this text. */
  heard(text) {
    return this.page.getByRole("log").getByText(text).first().waitFor();
  }

  async verdict(milliseconds = 5_000) {
    const box = this.page.getByRole("region", { name: "Why it closed" });
    await box.waitFor({ timeout: milliseconds });
    const { code, reason, reconnect } = await box.evaluate((element) => ({ ...element.dataset }));
    const text = await box.innerText();
    const json = await box.locator("#verdict-json").innerText();
    return { code: Number(code), reason, reconnect, text, json: json ? JSON.parse(json) : null };
  }

  number(id) {
    return this.page.locator(`#${id}`).innerText().then(Number);
  }

  bar(attribute, name) {
    const row = this.page.locator(`[data-${attribute}="${name}"]`);
    return row.getAttribute("data-value", { timeout: 3_000 }).then(Number, () => 0);
  }

  async disconnect() {
    await this.page.getByRole("button", { name: "Disconnect" }).click();
    await this.page.getByText("not connected").waitFor();
  }

  shot(name) {
    return this.page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
  }

  /** Rules of WCAG A and AA, contrast included. */
  async accessible() {
    await this.page.evaluate(AXE);
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];
    const run = (tags) => globalThis.axe.run({ runOnly: { type: "tag", values: tags } });
    const { violations } = await this.page.evaluate(run, tags);
    const found = violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html}`));
    assert.deepEqual(found, []);
  }

  async narrowEnough() {
    const spare = () => document.documentElement.scrollWidth - innerWidth;
    assert.ok((await this.page.evaluate(spare)) <= 0, "the page scrolls sideways");
  }
}

const REFUSALS = [
  ["expired", "token_expired", "has expired"],
  ["forged", "token_bad_signature", "not signed with a key"],
  ["missing", "token_missing", "No token was sent"],
];

export function launch() {
  const executablePath = process.env.CHROMIUM;
  return chromium.launch({ executablePath, args: FLAGS, chromiumSandbox: false });
}

export async function browserChecks(gateway) {
  mkdirSync(SHOTS, { recursive: true });
  const browser = await launch();
  console.log(`Chromium ${browser.version()}`);
  try {
    const tab = await Tab.open(browser, gateway);
    await goodToken(tab, gateway);
    await refusals(tab, gateway);
    await otherCarriers(tab);
    await otherCloses(tab);
    await retries(tab, gateway);
    await looks(browser, gateway);
    await check("page: no error and no policy violation on the console", async () => {
      assert.deepEqual(tab.complaints, []);
    });
  } finally {
    await browser.close();
  }
}

async function goodToken(tab, gateway) {
  await check("page: a good token chats, and the live counters move", async () => {
    const before = await gateway.live();
    await tab.connect("good");
    await tab.heard("* alice joined, 1 here");
    await tab.say("hello from the browser");
    await tab.heard("alice: hello from the browser");
    const open = () => tab.bar("stage", "open");
    await eventually(async () => (await open()) === 1, "one open connection shown");
    const accepted = () => tab.number("accepted");
    await eventually(async () => (await accepted()) > before.accepted_total, "accepted grows");
    const sum = Object.values(before.messages_total).reduce((total, count) => total + count, 0);
    await eventually(async () => (await tab.number("messages")) >= sum + 3, "messages grow");
    const lines = () => tab.page.locator("#rates polyline").count();
    await eventually(async () => (await lines()) === 2, "a chart");
    await tab.shot("good-light");
    await tab.disconnect();
    await eventually(async () => (await open()) === 0, "no open connection shown");
  });
}

async function refusals(tab, gateway) {
  for (const [kind, reason, meaning] of REFUSALS) {
    await check(`page: a token that is ${kind} is refused and not tried again`, async () => {
      const seen = (await gateway.live()).closes[reason];
      await tab.connect(kind);
      const verdict = await tab.verdict();
      assert.deepEqual([verdict.code, verdict.reason, verdict.reconnect], [4401, reason, "false"]);
      assert.deepEqual(verdict.json, { type: "close", code: 4401, reason, reconnect: false });
      assert.ok(verdict.text.includes("Don't reconnect"), verdict.text);
      assert.ok(verdict.text.includes(meaning), verdict.text);
      // A client that did not understand would be back within this time, many times over.
      await pause(2_000);
      const live = await gateway.live();
      assert.equal(live.closes[reason], seen + 1);
      assert.equal(live.connections.open, 0);
      const shown = () => tab.bar("cause", reason);
      await eventually(async () => (await shown()) === seen + 1, "the cause shown");
      await tab.shot(`${kind}-light`);
    });
  }
}

async function otherCarriers(tab) {
  const table = [
    ["the query", { by: "query (avoid)" }],
    ["the first message", { by: "first message" }],
    ["TLS", { over: "TLS" }],
    ["TLS and the first message", { over: "TLS", by: "first message" }],
  ];
  for (const [name, options] of table) {
    await check(`page: a good token by ${name}`, async () => {
      await tab.connect("good", { as: "dave", ...options });
      await tab.heard("* dave joined, 1 here");
      const said = `this is ${name}`;
      await tab.say(said);
      await tab.heard(`dave: ${said}`);
      await tab.disconnect();
      await tab.page.evaluate(() => document.getElementById("log").replaceChildren());
    });
    await check(`page: an expired token by ${name}`, async () => {
      await tab.connect("expired", options);
      const { code, reason } = await tab.verdict();
      assert.deepEqual([code, reason], [4401, "token_expired"]);
    });
  }
}

async function otherCloses(tab) {
  await check("page: the backend's own close is shown as it is", async () => {
    await tab.connect("good", { to: "/echo" });
    await tab.page.getByRole("button", { name: "a close by the backend" }).click();
    const verdict = await tab.verdict();
    const { code, reason, json } = verdict;
    assert.deepEqual([code, reason, json], [4000, "enough for today", null]);
  });
  await check("page: a message of 2 MiB", async () => {
    await tab.connect("good", { to: "/echo" });
    await tab.page.getByRole("button", { name: "a message of 2 MiB" }).click();
    const verdict = await tab.verdict();
    assert.deepEqual([verdict.code, verdict.reason], [1009, "too_large"]);
    assert.ok(verdict.text.includes("larger than the gateway allows"), verdict.text);
  });
  await check("page: a short-lived token runs out", async () => {
    await tab.connect("short", { to: "/echo" });
    await tab.page.getByText("token expires in").waitFor();
    const { code, reason, reconnect } = await tab.verdict(25_000);
    assert.deepEqual([code, reason, reconnect], [4401, "token_expired", "false"]);
  });
  await check("page: the keyboard alone will do", async () => {
    const { page } = tab;
    await page.getByRole("radio", { name: "good" }).focus();
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowRight");
    assert.ok(await page.getByRole("radio", { name: "expired" }).isChecked());
    await page.keyboard.press("Enter");
    assert.equal((await tab.verdict()).reason, "token_expired");
  });
}

async function retries(tab, gateway) {
  await check("page: after a close that allows it, it comes back, but not at once", async () => {
    const before = (await gateway.live()).closes.authentication_timed_out;
    await tab.connect("missing", { by: "first message" });
    const verdict = await tab.verdict(8_000);
    assert.deepEqual([verdict.code, verdict.reconnect], [4408, "true"]);
    assert.match(verdict.text, /Reconnecting in \d/);
    const begun = Date.now();
    await tab.shot("retry-light");
    await tab.page.locator('#state[data-state="open"]').waitFor();
    const waited = Date.now() - begun;
    assert.ok(waited >= 700 && waited < 4_000, `came back after ${waited} ms`);
    await tab.disconnect();
    assert.equal((await gateway.live()).closes.authentication_timed_out, before + 1);
  });
}

async function looks(browser, gateway) {
  const table = [
    ["wide-light", { colorScheme: "light", viewport: WIDE }],
    ["wide-dark", { colorScheme: "dark", viewport: WIDE }],
    ["narrow-light", { colorScheme: "light", viewport: NARROW }],
    ["narrow-dark", { colorScheme: "dark", viewport: NARROW }],
  ];
  for (const [name, options] of table) {
    await check(`page: ${name} is whole and accessible`, async () => {
      const tab = await Tab.open(browser, gateway, options);
      await tab.accessible();
      await tab.connect("forged");
      await tab.verdict();
      await tab.connect("good", { as: "bob" });
      await tab.heard("* bob joined");
      for (const text of ["is the gate open?", "it is", "ünïcödé too"]) await tab.say(text);
      await tab.heard("ünïcödé");
      await pause(2_500);
      await tab.narrowEnough();
      await tab.accessible();
      await tab.shot(`${name}-open`);
      await tab.disconnect();
      await tab.connect("expired");
      await tab.verdict();
      await tab.accessible();
      await tab.narrowEnough();
      await tab.shot(`${name}-refused`);
      assert.deepEqual(tab.complaints, []);
      await tab.context.close();
    });
  }
}
