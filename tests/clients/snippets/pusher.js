/** A Pusher client of this gateway that tells why it stopped. `Pusher` is pusher-js. */
export function openPusher(Pusher, host, port, onStop, options = {}) {
  const pusher = new Pusher("app", {
    cluster: "",
    wsHost: host,
    wsPort: port,
    wssPort: port,
    enabledTransports: ["ws", "wss"],
    enableStats: false,
    ...options,
  });
  let why;
  pusher.connection.bind("error", ({ error }) => (why = error?.data?.message));
  pusher.connection.bind("disconnected", () => onStop(why));
  return pusher;
}
