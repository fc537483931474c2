// How Phoenix answers an upgrade: the checks of its endpoint and of `UserSocket`, in its order.
// `judge` returns `{ status, body, headers }` for a refusal, or what the 101 needs.

import { subjectOf } from "../tokens.js";

const BEARER = "base64url.bearer.phx.";

const refusal = (status, body = "", headers = {}) => ({ status, body, headers });

/** All values of a field, in order; names are lower case. */
export function field(request, name) {
  const values = [];
  const { rawHeaders } = request;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (rawHeaders[i].toLowerCase() === name) values.push(rawHeaders[i + 1]);
  }
  return values;
}

/** `Plug.SSL` with `rewrite_on: [:x_forwarded_proto]`: anything but one plain `https` is http. */
export function forcedToHttps(options, request) {
  const host = (request.headers.host ?? "").replace(/:\d+$/, "");
  if (!options.forceSsl || host === "localhost" || host === "127.0.0.1") return null;
  const proto = field(request, "x-forwarded-proto");
  if (proto.length === 1 && proto[0] === "https") return null;
  return refusal(301, "", { location: `https://${host}${request.url}` });
}

function badRequest(request) {
  const tokens = field(request, "connection").join(",").toLowerCase().split(",");
  if (request.method !== "GET") return `'method' must be GET, got ${request.method}`;
  if (request.httpVersion === "1.0") return "HTTP version 1.0 unsupported";
  if (!tokens.some((token) => token.trim() === "upgrade")) {
    return "'connection' header must contain 'upgrade'";
  }
  if ((request.headers.upgrade ?? "").toLowerCase() !== "websocket") {
    return "'upgrade' header must contain 'websocket'";
  }
  if (field(request, "sec-websocket-key").length !== 1) return "'sec-websocket-key' header is absent";
  if (request.headers["sec-websocket-version"] !== "13") return "'sec-websocket-version' must be 13";
  return null;
}

/** Whether an Origin passes `check_origin`. */
function originPasses(options, request, scheme) {
  const { checkOrigin } = options;
  const [origin] = field(request, "origin");
  if (checkOrigin === false || origin === undefined) return true;
  const parts = /^(\w+):\/\/([^:/]+)(?::(\d+))?$/.exec(origin);
  if (parts === null) return false;
  const port = (text, of) => text ?? (of === "https" ? "443" : "80");
  const [, ofScheme, ofHost, given] = parts;
  if (checkOrigin === true) return ofHost === options.urlHost;
  if (checkOrigin === ":conn") {
    const [host, own] = (request.headers.host ?? "").split(":");
    return ofScheme === scheme && ofHost === host && port(given, ofScheme) === port(own, scheme);
  }
  return checkOrigin.some((entry) => {
    const wanted = /^(?:(\w+):)?\/\/([^:/]+)(?::(\d+))?$/.exec(entry);
    const [, wantedScheme, wantedHost, wantedPort] = wanted;
    const below = wantedHost.startsWith("*.");
    const host = below
      ? ofHost === wantedHost.slice(2) || ofHost.endsWith(wantedHost.slice(1))
      : ofHost === wantedHost;
    if (wantedScheme === undefined) return host;
    const samePort = port(given, ofScheme) === port(wantedPort, wantedScheme);
    return host && ofScheme === wantedScheme && samePort;
  });
}

/** The subprotocol to answer and the decoded token; or a refusal. */
function subprotocol(options, request) {
  const offered = field(request, "sec-websocket-protocol").join(",").split(",");
  const names = offered.map((name) => name.trim()).filter((name) => name !== "");
  if (options.version !== "1.7" && options.authToken) {
    const entries = names.filter((name) => name.startsWith(BEARER));
    if (entries.length > 1) return refusal(403);
    const chosen = names.includes("phoenix") ? "phoenix" : null;
    if (entries.length === 0) return { chosen };
    const encoded = entries[0].slice(BEARER.length).replaceAll("+", "-").replaceAll("/", "_");
    if (!/^[\w-]*$/.test(encoded)) return refusal(500);
    return { chosen, authToken: Buffer.from(encoded, "base64url").toString() };
  }
  const { subprotocols } = options;
  if (!subprotocols || names.length === 0) return { chosen: null };
  const chosen = names.find((name) => subprotocols.includes(name));
  return chosen ? { chosen } : refusal(403);
}

/** `connect/3` of the application: `{ user }`, or a refusal. */
function connect(options, request, params, authToken) {
  if (params.raise !== undefined) return refusal(500);
  if (params.handled !== undefined) {
    // What a socket with an `error_handler` answers.
    return refusal(Number(params.handled), "the application says no", { "retry-after": "3" });
  }
  if (options.auth === "channel") return { user: null };
  let user;
  if (options.auth === "session") {
    const cookies = new URLSearchParams((request.headers.cookie ?? "").replaceAll("; ", "&"));
    // Without the page's CSRF token there is no session.
    user = params._csrf_token === "csrf-of-the-page" ? subjectOf(cookies.get("_app_key")) : null;
  } else {
    user = subjectOf(authToken ?? params.token);
  }
  return user === null || options.revoked.has(user) ? refusal(403) : { user };
}

/** Judges an upgrade of a path that is a socket's. */
export function judge(options, request) {
  const bad = badRequest(request);
  if (bad !== null) return refusal(400, bad);
  const scheme = options.forceSsl ? "https" : "http";
  if (!originPasses(options, request, scheme)) return refusal(403);
  const params = Object.fromEntries(new URL(request.url, "http://app").searchParams);
  if (!/^2\.\d+\.\d+$/.test(params.vsn ?? "")) return refusal(403);
  const protocol = subprotocol(options, request);
  if (protocol.status) return protocol;
  const connected = connect(options, request, params, protocol.authToken);
  if (connected.status) return connected;
  return { ...connected, chosen: protocol.chosen };
}

/** The same for long polling, which has no upgrade. */
export function judgePoll(options, request) {
  const params = Object.fromEntries(new URL(request.url, "http://app").searchParams);
  if (!originPasses(options, request, options.forceSsl ? "https" : "http")) return refusal(403);
  if (!/^2\.\d+\.\d+$/.test(params.vsn ?? "")) return refusal(403);
  return connect(options, request, params, request.headers["x-phoenix-authtoken"]);
}
