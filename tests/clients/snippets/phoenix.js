import { Socket } from "phoenix";

/** A Phoenix socket that stops when the gateway says so. */
export async function openSocket(url, freshToken, onStop, options = {}) {
  const socket = new Socket(url, { ...options, authToken: await freshToken() });
  socket.onMessage(({ topic, event, payload }) => {
    if (topic !== "phoenix" || event !== "phx_error" || payload.reconnect) return;
    socket.disconnect();
    onStop(payload.reason);
  });
  socket.connect();
  return socket;
}
