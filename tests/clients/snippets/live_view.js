/** Stops a LiveView page's socket when the gateway refuses it. Call it before `connect()`. */
export function stopOnRefusal(liveSocket, onStop = () => {}) {
  liveSocket.getSocket().onMessage(({ topic, event, payload }) => {
    if (topic !== "phoenix" || event !== "phx_error" || payload.reconnect) return;
    liveSocket.disconnect();
    onStop(payload.reason);
  });
}
