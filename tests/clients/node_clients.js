// Node's `ws` against every route, carrier and refusal.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import tls from "node:tls";
import WebSocket from "ws";
import { check, eventually, within } from "./harness.js";

/** A client that remembers what it was told. */
class Client {
  constructor(url, { token, carrier = "authorization", protocols = [], ...options } = {}) {
    this.messages = [];
    const headers = { ...options.headers };
    const offers = [...protocols];
    let address = url;
    if (token && carrier === "authorization") headers.Authorization = `Bearer ${token}`;
    if (token && carrier === "query") address += `?token=${token}`;
    if (token && carrier === "subprotocol") {
      const encoded = Buffer.from(token).toString("base64url");
      offers.push(`base64url.bearer.authorization.${encoded}`);
    }
    this.socket = new WebSocket(address, offers, { ...options, headers, perMessageDeflate: false });
    this.socket.on("message", (data, isBinary) => {
      this.messages.push(isBinary ? data : data.toString());
    });
    this.opened = new Promise((resolve, reject) => {
      this.socket.on("open", resolve);
      this.socket.on("error", reject);
      this.socket.on("unexpected-response", (_, response) => {
        response.resume();
        const status = response.statusCode;
        reject(Object.assign(new Error(`HTTP ${status}`), { status }));
      });
    });
    this.opened.catch(() => {});
    this.closed = new Promise((resolve) => {
      this.socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() }));
    });
    if (token && carrier === "first") this.opened.then(() => this.socket.send(token), () => {});
  }

  async open() {
    await within(5_000, this.opened, "no upgrade");
    return this;
  }

  async next(what) {
    await eventually(() => this.messages.length > 0, what ?? "a message");
    return this.messages.shift();
  }

  close(milliseconds = 5_000) {
    return within(milliseconds, this.closed, "no close");
  }
}

/** The one explanation, then the close that it announces. */
async function refusal(client, expected, milliseconds) {
  const close = await client.close(milliseconds);
  const texts = client.messages.filter((text) => String(text).startsWith("{"));
  const explanations = texts.map((text) => JSON.parse(text));
  assert.deepEqual(explanations, [{ type: "close", ...expected }]);
  assert.deepEqual(close, { code: expected.code, reason: expected.reason });
}

const REFUSED = {
  expired: { code: 4401, reason: "token_expired", reconnect: false },
  forged: { code: 4401, reason: "token_bad_signature", reconnect: false },
  none: { code: 4401, reason: "token_missing", reconnect: false },
};

async function echoes(client) {
  const largest = "ü".repeat(100_000);
  for (const text of ["hello", "", "🚪 ist zu", largest]) {
    client.socket.send(text);
    assert.equal(await client.next(), text);
  }
  const bytes = Buffer.from([0, 1, 2, 255]);
  client.socket.send(bytes);
  assert.deepEqual(await client.next(), bytes);
}

/** Runs beside the others: it takes the 20 seconds that the token lives. */
export function expiry(gateway) {
  return check("ws: a short-lived token ends its connection", async () => {
    const client = new Client(`${gateway.plain}/echo`, { token: await gateway.token("short") });
    const begun = Date.now();
    await (await client.open()).socket.send("still here");
    assert.equal(await client.next(), "still here");
    await refusal(client, REFUSED.expired, 30_000);
    const lived = Date.now() - begun;
    assert.ok(lived > 17_000 && lived < 23_000, `closed after ${lived} ms`);
  });
}

/** The function that docs/front-end.md gives to authors, as it stands there. */
async function documented() {
  const page = readFileSync(new URL("../../docs/front-end.md", import.meta.url), "utf8");
  const blocks = [...page.matchAll(/```js\n(.*?)```/gs)].map(([, code]) => code);
  const code = blocks.find((block) => block.includes("export function keepOpen"));
  globalThis.WebSocket = WebSocket;
  return import(`data:text/javascript,${encodeURIComponent(code)}`);
}

async function documentedChecks(gateway) {
  const { keepOpen } = await documented();
  await check("docs: the documented client comes back, and stops at a refusal", async () => {
    const asked = [];
    const token = () => gateway.token(asked.push(Date.now()) === 1 ? "good" : "expired");
    const ended = new Promise((resolve) => {
      const heard = (_, socket) => socket.send("/close 4429 slower");
      keepOpen(`${gateway.plain}/chat`, token, heard, (...why) => resolve(why));
    });
    // 4429 brings it back, with an expired token; that ends it.
    const why = await within(10_000, ended, "the client does not stop");
    assert.deepEqual(why.map(String), ["4401", "token_expired"]);
    assert.equal(asked.length, 2);
    assert.ok(asked[1] - asked[0] >= 1_000, `back after ${asked[1] - asked[0]} ms`);
  });
  await check("docs: the documented client keeps the gateway's pace", async () => {
    const asked = [];
    const token = async () => {
      asked.push(Date.now());
      if (asked.length === 2) throw new Error("enough");
      return gateway.token("good");
    };
    // This route looks for the token in the first message only: 5 s, then 1 s at least.
    const ended = new Promise((resolve) => {
      keepOpen(`${gateway.plain}/first/echo`, token, () => {}, (...why) => resolve(why));
    });
    assert.deepEqual(await within(12_000, ended, "no second attempt"), [0, "Error: enough"]);
    assert.ok(asked[1] - asked[0] >= 5_900, `back after ${asked[1] - asked[0]} ms`);
  });
}

export async function nodeChecks(gateway) {
  const carriers = ["authorization", "subprotocol", "query", "first"];
  const options = { protocols: [gateway.subprotocol] };
  for (const carrier of carriers) {
    const path = carrier === "first" ? "/first/echo" : "/echo";
    await check(`ws: a good token by ${carrier} echoes`, async () => {
      const token = await gateway.token("good");
      const client = await new Client(gateway.plain + path, { token, carrier, ...options }).open();
      assert.equal(client.socket.protocol, gateway.subprotocol, "the token must not be echoed");
      await echoes(client);
      client.socket.close(1000, "done");
      assert.equal((await client.close()).code, 1000);
    });
    for (const [kind, expected] of Object.entries(REFUSED)) {
      if (kind === "none" && carrier !== "authorization") continue;
      await check(`ws: ${kind} token by ${carrier} is refused with an explanation`, async () => {
        const token = await gateway.token(kind);
        await refusal(new Client(gateway.plain + path, { token, carrier, ...options }), expected);
      });
    }
  }
  await silentFirstMessage(gateway);
  await tlsChecks(gateway);
  await chatChecks(gateway);
  await httpRefusals(gateway);
  await closeChecks(gateway);
  await addressesInUse(gateway);
  await documentedChecks(gateway);
}

async function silentFirstMessage(gateway) {
  await check("ws: a client that never authenticates is closed in time", async () => {
    const begun = Date.now();
    const client = new Client(`${gateway.plain}/first/echo`);
    const reason = "authentication_timed_out";
    const expected = { code: 4408, reason, reconnect: true, retry_after_ms: 1000 };
    await refusal(client, expected, 10_000);
    assert.ok(Date.now() - begun < 7_000, `after ${Date.now() - begun} ms`);
  });
}

async function tlsChecks(gateway) {
  await check("ws: TLS with the certificate that was just made", async () => {
    const token = await gateway.token("good");
    const options = { token, rejectUnauthorized: false };
    const client = await new Client(`${gateway.tls}/echo`, options).open();
    await echoes(client);
    client.socket.close();
    await client.close();
  });
  await check("TLS: 1.3, http/1.1, names of this machine", async () => {
    const { hostname, port } = new URL(gateway.tls);
    const alpn = ["h2", "http/1.1"];
    const options = { host: hostname, port, rejectUnauthorized: false, ALPNProtocols: alpn };
    const socket = tls.connect(options);
    const secure = new Promise((resolve) => socket.on("secureConnect", resolve));
    await within(5_000, secure, "no handshake");
    const names = socket.getPeerCertificate().subjectaltname;
    const agreed = [socket.getProtocol(), socket.alpnProtocol];
    socket.destroy();
    assert.deepEqual(agreed, ["TLSv1.3", "http/1.1"]);
    for (const name of ["localhost", "127.0.0.1"]) assert.ok(names.includes(name), names);
  });
}

async function chatChecks(gateway) {
  await check("ws: a chat of two", async () => {
    const join = async (subject) => {
      const token = await gateway.token("good", subject);
      return new Client(`${gateway.plain}/chat`, { token }).open();
    };
    const bob = await join("bob");
    assert.match(await bob.next(), /^\* bob joined/);
    const carol = await join("carol");
    assert.match(await bob.next(), /^\* carol joined/);
    assert.match(await carol.next(), /^\* carol joined/);
    carol.socket.send("hello bob");
    assert.equal(await bob.next(), "carol: hello bob");
    carol.socket.close();
    assert.equal(await carol.next(), "carol: hello bob");
    assert.match(await bob.next(), /^\* carol left/);
    bob.socket.close();
    await bob.close();
  });
}

async function httpRefusals(gateway) {
  for (const origin of ["https://evil.example", "null"]) {
    await check(`ws: a page of ${origin} hears that its origin is not listed`, async () => {
      const token = await gateway.token("good");
      const client = new Client(`${gateway.plain}/echo`, { token, headers: { Origin: origin } });
      await refusal(client, { code: 4403, reason: "forbidden_origin", reconnect: false });
    });
  }
  const table = [
    ["an unknown path", "/nothing", {}, 404],
  ];
  for (const [name, path, options, status] of table) {
    await check(`ws: ${name} gets HTTP ${status}`, async () => {
      const token = await gateway.token("good");
      const client = new Client(gateway.plain + path, { token, ...options });
      await assert.rejects(client.open(), { status });
    });
  }
}

async function closeChecks(gateway) {
  const open = async () => {
    const token = await gateway.token("good");
    return new Client(`${gateway.plain}/echo`, { token }).open();
  };
  await check("ws: the backend's own close passes", async () => {
    const client = await open();
    client.socket.send("/close 4000 enough for today");
    assert.deepEqual(await client.close(), { code: 4000, reason: "enough for today" });
  });
  await check("ws: a message over the limit gets 1009", async () => {
    const client = await open();
    client.socket.send("x".repeat(2 << 20));
    assert.deepEqual(await client.close(), { code: 1009, reason: "too_large" });
  });
  await check("ws: text that is not UTF-8 gets 1007", async () => {
    const client = await open();
    client.socket.send(Buffer.from([0xc3, 0x28]), { binary: false });
    assert.deepEqual(await client.close(), { code: 1007, reason: "invalid_utf8" });
  });
  await check("ws: pings are answered, fragments put together", async () => {
    const client = await open();
    const pong = new Promise((resolve) => client.socket.on("pong", resolve));
    client.socket.ping("are you there");
    assert.equal(String(await within(5_000, pong, "no pong")), "are you there");
    for (const [part, fin] of [["one ", false], ["two ", false], ["three", true]]) {
      client.socket.send(part, { fin });
    }
    assert.equal(await client.next(), "one two three");
    client.socket.close();
    await client.close();
  });
}

async function addressesInUse(gateway) {
  await check("dev: a taken port is named, with the option that changes it", async () => {
    const { spawnSync } = await import("node:child_process");
    const { port } = new URL(gateway.plain);
    const ports = ["--plain-port", port, "--tls-port", "0", "--admin-port", "0"];
    const second = spawnSync(process.env.PORTCULLIS_BIN, ["dev", ...ports], { timeout: 10_000 });
    assert.equal(second.status, 1);
    const text = String(second.stderr);
    assert.ok(text.includes(`127.0.0.1:${port}`) && text.includes("--plain-port "), text);
  });
}

/** The last checks: they end the gateway. */
export async function endingChecks(gateway) {
  await check("the log has no token", async () => {
    for (const { good, expired, forged } of gateway.tokens) {
      for (const token of [good, expired, forged]) {
        // Claims differ from second to second, the start of a token does not.
        assert.ok(!gateway.log.includes(token.slice(0, 30)), "a token is in the log");
      }
    }
    const metrics = await (await fetch(`${gateway.admin}/metrics`)).text();
    assert.ok(!metrics.includes(gateway.tokens[0].good.slice(0, 30)));
    assert.ok(gateway.log.includes("token_expired"), "close lines were looked for");
  });
  await check("SIGTERM says goodbye to clients, and ends with 0", async () => {
    const token = await gateway.token("good");
    const clients = await Promise.all(
      [1, 2, 3].map(() => new Client(`${gateway.plain}/echo`, { token }).open()),
    );
    const ended = gateway.stop();
    const expected = { code: 1001, reason: "going_away", reconnect: true, retry_after_ms: 1000 };
    for (const client of clients) await refusal(client, expected);
    assert.equal(await ended, 0);
  });
}

export function version(name) {
  const path = new URL(`node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(path, "utf8")).version;
}
