// Where a check runs: an application of its own, and between it and the client either nothing
// ("direct") or a gateway of its own. A check asks the place for the URL that clients use and for
// the application, whose log is read on its own address in both cases.

import { check } from "../clients/harness.js";
import { App } from "./app.js";
import { Gateway } from "./gateway.js";

/** "direct" or "gateway". */
export const MODE = process.env.SERVERS_MODE ?? "direct";
/** Which checks, by a part of their names. */
const WANTED = new RegExp(process.env.SERVERS_CHECKS ?? "");
export const DIRECT = MODE === "direct";

// Each check has processes of its own, and waits most of the time: more checks than cores run
// beside each other, but not so many that starting Rails takes longer than a check may.
const BESIDE = 6;
let running = 0;
const waiting = [];

async function inTurn(body) {
  if (running >= BESIDE) await new Promise((resolve) => waiting.push(resolve));
  else running += 1;
  try {
    await body();
  } finally {
    const next = waiting.shift();
    if (next) next();
    else running -= 1;
  }
}

// Checks through the gateway that wait for a part of it. The line goes when the part
// comes; SERVERS_LATER=1 runs them already.
const LATER = [
  /an authenticating channel/, // phoenix by message: closed as protocol_error after the refused join
  /force_ssl without TLS/, // the operator's warning of a status
];

let skipped = 0;
export const skippedChecks = () => skipped;

class Place {
  /** A WebSocket URL, or with another scheme that of a page. */
  url(path = "/", scheme = "ws") {
    const { secure, address } = this.gateway ?? this.app;
    return `${scheme}${secure}://${address}${path}`;
  }
}

/** The same application and route behind TLS: at both ends, or at the gateway alone. */
export const overTls = ({ options, route, ...wants }) => ({
  ...wants,
  options: { ...options, tls: true },
  route: { ...route, tls: true },
});
export const tlsInFront = ({ route, ...wants }) => ({ ...wants, route: { ...route, tls: true } });

/**
 * Runs one check at a place. `wants` is `{ app, options, route }`: the application, its options,
 * and the settings of the gateway's route (see gateway.js). `only` is the mode that the check
 * makes sense in, if it is not both; "later" is neither: it waits for a part of the gateway.
 */
export function at(wants, name, body, only) {
  if (!WANTED.test(name)) return Promise.resolve();
  const waits = !DIRECT && !process.env.SERVERS_LATER && LATER.some((pattern) => pattern.test(name));
  if (waits || (only !== undefined && only !== MODE)) {
    if (waits || only === "gateway" || only === "later") skipped += 1;
    return Promise.resolve();
  }
  const whole = async () => {
    const place = new Place();
    try {
      place.app = await App.start(wants.app, wants.options);
      if (!DIRECT) place.gateway = await Gateway.start(place.app, wants.route);
      await body(place);
    } catch (error) {
      error.stack += `\n${place.gateway?.trace() ?? ""}`;
      throw error;
    } finally {
      await place.gateway?.end();
      place.app?.end();
    }
  };
  return inTurn(() => check(`${MODE}: ${name}`, whole));
}
