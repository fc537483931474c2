// PyPI's `websockets` against Django Channels on daphne.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { eventually, pause } from "../../clients/harness.js";
import { TARGET } from "../packages.js";
import { at, overTls, tlsInFront } from "../place.js";
import { forged, token } from "../tokens.js";

const SCRIPT = join(dirname(fileURLToPath(import.meta.url)), "websockets_client.py");
const ORIGIN = "https://app.example.com";

class Client {
  constructor(place, target, { origin = ORIGIN, reconnect = false } = {}) {
    this.events = [];
    this.errors = "";
    const more = reconnect ? ["--reconnect"] : [];
    this.process = spawn(join(TARGET, "venv", "bin", "python"), [SCRIPT, place.url(target), origin, ...more]);
    this.process.stderr.on("data", (bytes) => (this.errors += bytes));
    createInterface({ input: this.process.stdout }).on("line", (line) => this.events.push(JSON.parse(line)));
  }

  tell(command) {
    this.process.stdin.write(`${JSON.stringify(command)}\n`);
  }

  /** The next event of a kind; those before it are dropped. */
  next(kind, milliseconds = 8_000) {
    const find = () => {
      const index = this.events.findIndex((event) => kind in event);
      return index < 0 ? null : { value: this.events.splice(0, index + 1).at(-1)[kind] };
    };
    return eventually(find, `${kind}\n${this.errors}`, milliseconds).then(({ value }) => value);
  }

  end() {
    this.process.kill("SIGKILL");
  }
}

const good = (subject, seconds) => `/ws?token=${token(subject, seconds)}`;

/** A check's client is gone with the check. */
const using = (target, options, body) => async (place) => {
  const client = new Client(place, typeof target === "function" ? target() : target, options);
  try {
    await body(place, client);
  } finally {
    client.end();
  }
};

async function talks(place, client) {
  assert.equal(await client.next("open", 15_000), "echo.v1");
  // daphne sends no empty message.
  for (const text of ["hello", "ü🚪", "x".repeat(500_000)]) {
    client.tell({ send: text });
    assert.ok((await client.next("text")) === text);
  }
  const bytes = Buffer.alloc(100_000, 9).toString("base64");
  client.tell({ binary: bytes });
  assert.equal(await client.next("binary"), bytes);
  client.tell({ ping: true });
  await client.next("pong");
  await place.app.act("send", { text: "by itself" });
  assert.equal(await client.next("text"), "by itself");
  // Its pings every half second, daphne's every second (and a client that answers none is dropped
  // after three more): both must be answered.
  await pause(5_000);
  client.tell({ send: "still here" });
  assert.equal(await client.next("text"), "still here");
  client.tell({ close: [4000, "enough"] });
  // daphne answers every close frame with 1000, the gateway with the same code.
  assert.deepEqual((await client.next("close"))[0], place.gateway ? 4000 : 1000);
  assert.equal((await place.app.saw("close")).code, 4000);
}

/** daphne sends no other codes than these. */
async function closes(place, client) {
  for (const code of [4001, 1000, 3000]) {
    await client.next("open", 15_000);
    await place.app.act("close", { code });
    assert.deepEqual(await client.next("close"), [code, ""]);
  }
}

async function restart(place, client) {
  await client.next("open", 15_000);
  await place.app.stop("SIGTERM");
  await client.next("close");
  await place.app.begin();
  // Behind the gateway each try opens, and while there is no server hears so.
  const back = async () => {
    await client.next("open", 20_000);
    client.tell({ send: "again" });
    return (await client.next("text")) === "again";
  };
  while (!(await back()));
}

async function refusals(place) {
  for (const target of ["/ws", `/ws?token=${forged()}`, good("alice", -60)]) {
    await using(target, {}, async (_, client) => {
      // Without the gateway it is daphne's bare status line.
      assert.ok([403, null].includes(await client.next("refused", 15_000)));
    })(place);
  }
}

/** The gateway's explained refusal; the application hears nothing of it where the gateway judges. */
const explained = (target, reason) =>
  using(target, {}, async (_, client) => {
    assert.deepEqual(await client.next("close", 15_000), [4401, reason]);
  });

export function channelsChecks() {
  const wants = { app: "channels", route: { auth: "handshake" } };
  const judged = { app: "channels", route: { auth: "jwt", authLines: 'carriers = ["query:token"]' } };
  const run = (name, body, where = wants, only = undefined) => at(where, `Channels: ${name}`, body, only);
  return [
    run("talks, pings both ways, closes with its code", using(good, {}, talks)),
    run("talks over TLS", using(good, {}, talks), overTls(wants)),
    run("talks over TLS up to the gateway", using(good, {}, talks), tlsInFront(wants), "gateway"),
    run("close codes of the server", using(good, { reconnect: true }, closes)),
    run("a restart of the server", using(good, { reconnect: true }, restart)),
    run("refusals before the 101", refusals, wants, "direct"),
    run(
      "an absent Origin is refused by the application",
      using(good, { origin: "" }, async (_, client) => {
        assert.ok([403, null].includes(await client.next("refused", 15_000)));
      }),
      wants,
      "direct",
    ),
    run("the application's refusal is explained", (place) => explainedForbidden(place), wants, "gateway"),
    run("talks behind the gateway's own decision", using(good, {}, talks), judged, "gateway"),
    run("no token", explained("/ws", "token_missing"), judged, "gateway"),
    run("a forged token", explained(`/ws?token=${forged()}`, "token_bad_signature"), judged, "gateway"),
    run("an expired token", explained(good("alice", -60), "token_expired"), judged, "gateway"),
    run(
      "a revoked user",
      using(good, {}, async (place, client) => {
        await client.next("open", 15_000);
        await place.gateway.revoke("alice");
        assert.equal((await client.next("close"))[1], "token_revoked");
        assert.equal((await place.app.saw("close")).code, 1008);
      }),
      judged,
      "gateway",
    ),
  ];
}

/** 403 before the 101 becomes a close with cause and advice. */
const explainedForbidden = using("/ws", {}, async (_, client) => {
  const [code, reason] = await client.next("close", 15_000);
  assert.deepEqual([code, reason], [4403, "token_forbidden"]);
});
