import { Centrifuge } from "centrifuge";

/** A Centrifuge client: it asks for a token when it has none, and again when its own expires. */
export function openCentrifuge(url, getToken, onStop, options = {}) {
  const centrifuge = new Centrifuge(url, { ...options, getToken });
  centrifuge.on("disconnected", ({ code, reason }) => onStop(code, reason));
  centrifuge.connect();
  return centrifuge;
}
