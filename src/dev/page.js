// The page of `portcullis dev`: connects as a front end would, and shows what the gateway answers.

import { HISTORY, compact, drawCloses, drawRates, drawStages } from "./charts.js";

const $ = (id) => document.getElementById(id);
const LOG_MAX = 300;
const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 30_000;
const STEADY_MS = 5_000;

// What a reason means for the front end's author.
const REASONS = {
  token_missing: "No token was sent where this route expects one.",
  token_malformed: "The token cannot be read: cut off, encoded twice, or not a token.",
  token_repeated: "The request has the same cookie or field twice, with different tokens: an old one is still stored, often under another path or domain.",
  token_bad_signature: "The token was not signed with a key of this gateway.",
  token_expired: "The token has expired. Get a new one; the gateway refuses this one again.",
  token_revoked: "The token was revoked. The user must sign in again.",
  token_not_yet_valid: "The token is not valid yet. Compare the clocks of issuer and gateway.",
  token_forbidden: "The signature is right, but the token is for another issuer or audience, or lives too long.",
  csrf_mismatch: "The session came without the CSRF token of its page.",
  forbidden_origin: "Pages of this origin may not connect here.",
  forbidden_route: "This user may not use this path.",
  authentication_timed_out: "Connected, but no token arrived before the deadline.",
  over_capacity: "The gateway is full. Try again later.",
  rate_limited: "Too many messages or connections in too short a time.",
  slow_consumer: "The client did not read fast enough, and too many messages were waiting.",
  idle: "The client was silent for too long and answered no ping.",
  lifetime: "The connection reached its maximum age. Reconnect.",
  going_away: "The gateway is restarting.",
  backend_unavailable: "No backend can take the session right now.",
  backend_closed: "The backend ended the session.",
  protocol_error: "The client broke the WebSocket protocol.",
  handshake_repeated: "The client sent its first message, which authenticates it, a second time.",
  invalid_utf8: "A text message was not UTF-8.",
  unsupported_type: "This route does not accept messages of this type.",
  too_large: "A message was larger than the gateway allows.",
  client_closed: "This side closed.",
  internal: "An error in the gateway. Its log says which.",
};

// Codes after which reconnecting may help when there was no explanation.
const RETRYABLE = new Set([1001, 1005, 1006, 1011, 1012, 1013, 1014, 4408, 4429]);

let session = null;
let attempt = 0;
let retry = null;

async function fetchTokens() {
  const answer = await fetch("/dev/tokens.json");
  if (!answer.ok) throw new Error(`/dev/tokens.json answered ${answer.status}`);
  return answer.json();
}

function choice() {
  const kind = document.querySelector("input[name=kind]:checked").value;
  const [subject, carrier] = [$("subject").value, $("carrier").value];
  return { kind, subject, carrier, transport: $("transport").value, path: $("path").value };
}

/** Where and how to connect for a choice: what `new WebSocket` takes, and a first message. */
function plan(dev, { kind, subject, carrier, transport, path }) {
  const token = dev.tokens.find((entry) => entry.subject === subject)?.[kind] ?? "";
  let url = dev[transport] + (carrier === "first" ? "/first" : "") + path;
  const protocols = [dev.subprotocol];
  if (token && carrier === "subprotocol") {
    const encoded = btoa(token).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
    protocols.push(`base64url.bearer.authorization.${encoded}`);
  }
  if (token && carrier === "query") url += `?token=${encodeURIComponent(token)}`;
  return { url, protocols, token, first: carrier === "first" ? token : "" };
}

function showCall({ url, protocols, first }) {
  const short = (text) => text.replace(/([\w-]{12})[\w-]{20,}(\.[\w-]+)*/g, "$1…");
  const offers = protocols.map((offer) => `"${short(offer)}"`).join(", ");
  const send = first ? `\nsocket.onopen = () => socket.send("${short(first)}")` : "";
  $("call").textContent = `socket = new WebSocket("${short(url)}", [${offers}])${send}`;
}

function expiry(token) {
  try {
    const claims = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(claims)).exp * 1000;
  } catch {
    return 0;
  }
}

function say(kind, who, text) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const item = document.createElement("div");
  item.className = kind;
  const time = document.createElement("time");
  time.textContent = new Date().toTimeString().slice(0, 8);
  const [name, what] = [document.createElement("span"), document.createElement("span")];
  name.className = "who";
  name.textContent = who;
  what.className = "what";
  what.textContent = text;
  item.append(time, name, what);
  log.append(item);
  while (log.childElementCount > LOG_MAX) log.firstElementChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function setState(state, text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
  const open = state === "open";
  for (const control of [$("text"), $("send"), $("large"), $("ask")]) {
    control.disabled = !open;
  }
  $("shut").disabled = state === "closed";
}

function forget() {
  clearTimeout(retry);
  retry = null;
  if (session) {
    session.abandoned = true;
    session.socket.close(1000);
    session = null;
  }
}

async function connect() {
  forget();
  setState("opening", "connecting");
  const chosen = choice();
  let dev;
  try {
    dev = await fetchTokens();
  } catch (error) {
    setState("closed", "not connected");
    say("close", "page", `no token to be had: ${error.message}`);
    return;
  }
  const { url, protocols, token, first } = plan(dev, chosen);
  $("certificate").href = dev.certificate;
  const expires = chosen.kind === "none" ? 0 : expiry(token);
  const mine = { chosen, expires, opened: 0, explained: null, byUser: false };
  mine.socket = new WebSocket(url, protocols);
  session = mine;
  mine.socket.onopen = () => {
    mine.opened = Date.now();
    if (mine.abandoned) return;
    setState("open", "open");
    say("note", "page", `open: ${url.split("?")[0]}`);
    if (first) {
      mine.socket.send(first);
      say("out", "page", "the token, as the first message");
    }
    $("text").focus();
  };
  mine.socket.onmessage = (event) => received(mine, event.data);
  mine.socket.onclose = (event) => closed(mine, event);
}

/** The gateway's explanation, if this is one. */
function explanation(text) {
  try {
    const value = JSON.parse(text);
    return value?.type === "close" && typeof value.reconnect === "boolean" ? value : null;
  } catch {
    return null;
  }
}

function received(mine, data) {
  if (mine.abandoned) return;
  if (typeof data !== "string") {
    say("in", "backend", `(${data.size} bytes)`);
    return;
  }
  mine.explained = explanation(data);
  say(mine.explained ? "explain" : "in", mine.explained ? "gateway" : "backend", data);
}

function closed(mine, event) {
  if (mine.abandoned) return;
  if (session === mine) session = null;
  const { code, reason } = event;
  say("close", "close", `${code} ${reason}`.trim());
  const explained = mine.explained;
  const wanted = !mine.byUser
    && (explained ? explained.reconnect : RETRYABLE.has(code) && mine.opened > 0);
  if (mine.opened && Date.now() - mine.opened > STEADY_MS) attempt = 0;
  setState("closed", "not connected");
  let wait = null;
  if (wanted && $("again").checked) {
    wait = waitBefore(explained?.retry_after_ms ?? 0);
    attempt += 1;
    retry = setTimeout(connect, wait);
    setState("waiting", `again in ${(wait / 1000).toFixed(1)} s`);
  }
  showVerdict(mine, event, { wanted, wait });
}

/** At least the gateway's own time, longer after each attempt, and random, so that clients spread. */
function waitBefore(floor_ms) {
  const backoff = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** attempt);
  return Math.max(floor_ms, backoff) * (1 + Math.random() / 2);
}

function meaning(mine, { code, reason }) {
  if (mine.byUser) return "You closed it.";
  const known = REASONS[mine.explained?.reason ?? reason];
  if (known) return known;
  if (code === 1006 && mine.opened === 0) {
    return "The connection failed, and browsers hide the reason: nothing is listening there, the "
      + "certificate is not trusted, or the upgrade was refused over HTTP.";
  }
  if (code === 1006) return "The connection was cut without a close frame.";
  if (code >= 3000) return "The backend closed with its own code and reason.";
  return "A normal close.";
}

function advice(mine, { wanted, wait }) {
  if (mine.byUser) return "Nothing to do.";
  if (!wanted && mine.explained) return "Don't reconnect: it would end the same way.";
  if (!wanted) return "Don't reconnect automatically.";
  if (wait === null) return "Reconnecting may help.";
  return `Reconnecting in ${(wait / 1000).toFixed(1)} s.`;
}

function showVerdict(mine, event, decision) {
  const box = $("verdict");
  Object.assign(box.dataset, {
    code: event.code,
    reason: event.reason,
    reconnect: decision.wanted,
    calm: mine.byUser || event.code === 1000,
  });
  $("verdict-code").textContent = event.code;
  $("verdict-reason").textContent = event.reason || "no reason";
  $("verdict-advice").textContent = advice(mine, decision);
  $("verdict-text").textContent = meaning(mine, event);
  $("verdict-help").hidden = !(mine.opened === 0 && mine.chosen.transport === "tls");
  $("verdict-json").hidden = !mine.explained;
  $("verdict-json").textContent = mine.explained ? JSON.stringify(mine.explained, null, 2) : "";
  box.hidden = false;
}

function disconnect() {
  clearTimeout(retry);
  retry = null;
  attempt = 0;
  if (session) {
    session.byUser = true;
    session.socket.close(1000, "that is all");
  } else {
    setState("closed", "not connected");
  }
}

function send(text, shown = text) {
  if (session?.socket.readyState !== WebSocket.OPEN || text === "") return;
  session.socket.send(text);
  say("out", "you", shown);
}

const history = [];

async function poll() {
  const pill = $("gateway");
  try {
    const answer = await fetch("/live.json", { signal: AbortSignal.timeout(3000) });
    const live = await answer.json();
    drawLive(live);
    pill.dataset.state = live.phase;
    const workers = live.workers.filter((worker) => worker.alive).length;
    const count = `${workers} worker${workers === 1 ? "" : "s"}`;
    pill.textContent = `${live.phase}, ${count}, up ${span(live.uptime_seconds)}`;
  } catch {
    pill.dataset.state = "gone";
    pill.textContent = "the gateway does not answer";
  }
}

function span(seconds) {
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

function drawLive(live) {
  const { from_clients: from, to_clients: to } = live.messages_per_second;
  history.push([from, to]);
  if (history.length > HISTORY) history.shift();
  $("rate-from").textContent = compact(from);
  $("rate-to").textContent = compact(to);
  $("rate-peak").textContent = compact(Math.max(...history.flat()));
  $("accepted").textContent = compact(live.accepted_total);
  $("upgraded").textContent = compact(live.upgrades_total);
  $("refused").textContent = compact(live.tokens_refused_total);
  const total = Object.values(live.messages_total).reduce((sum, count) => sum + count, 0);
  $("messages").textContent = compact(total);
  drawStages($("stages"), live.connections);
  drawRates($("rates"), history);
  drawCloses($("closes"), live.closes);
}

function tick() {
  if (session?.expires && $("state").dataset.state === "open") {
    const left = Math.ceil((session.expires - Date.now()) / 1000);
    if (left > 0 && left < 60) $("state").textContent = `open, token expires in ${left} s`;
  }
}

async function refreshCall() {
  try {
    const dev = await fetchTokens();
    if ($("subject").childElementCount === 0) {
      $("subject").replaceChildren(...dev.tokens.map(({ subject }) => new Option(subject)));
    }
    showCall(plan(dev, choice()));
  } catch {
    $("call").textContent = "the gateway does not answer";
  }
}

$("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt = 0;
  $("verdict").hidden = true;
  connect();
});
$("connect").addEventListener("change", refreshCall);
$("shut").addEventListener("click", disconnect);
$("again").addEventListener("change", () => {
  if (!$("again").checked && retry !== null) disconnect();
});
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  send($("text").value);
  $("text").value = "";
});
$("ask").addEventListener("click", () => send("/close 4000 enough for today"));
$("large").addEventListener("click", () => send("x".repeat(2 << 20), "(2 MiB of x)"));
refreshCall();
poll();
setInterval(poll, 1000);
setInterval(tick, 250);
