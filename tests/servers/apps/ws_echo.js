// An echo server on npm's `ws`, as its README has it, with permessage-deflate on offer.
//
//   node ws_echo.js PORT
//
// It accepts a client whose `token` in the query, cookie or Authorization is good, refuses others
// with 401 before the 101, and accepts every client below /open. It picks the subprotocol `echo.v1`.
// Actions (see control.js): close?code=&reason=, terminate, send?text=, sockets.

import { WebSocketServer } from "../packages.js";
import { subjectOf } from "../tokens.js";
import { Control, webServer } from "./control.js";

const server = webServer((request, response) => {
  if (control.handle(request, response)) return;
  control.request(request);
  response.writeHead(426, { "content-type": "text/plain" }).end("Upgrade Required");
});

const sockets = new WebSocketServer({
  noServer: true,
  perMessageDeflate: { threshold: 0 },
  maxPayload: 4 * 1024 * 1024,
  handleProtocols: (offered) => (offered.has("echo.v1") ? "echo.v1" : false),
});

const all = () => [...sockets.clients];
const control = new Control({
  close: ({ code, reason }) => all().map((socket) => socket.close(code ? Number(code) : undefined, reason)).length,
  terminate: () => all().map((socket) => socket.terminate()).length,
  send: ({ text }) => all().map((socket) => socket.send(text)).length,
  sockets: () => sockets.clients.size,
});

function credential(request) {
  const { searchParams } = new URL(request.url, "http://app");
  const cookie = /(?:^|; )token=([^;]*)/.exec(request.headers.cookie ?? "");
  const bearer = /^Bearer (.*)$/.exec(request.headers.authorization ?? "");
  return searchParams.get("token") ?? bearer?.[1] ?? cookie?.[1];
}

let ids = 0;
server.on("upgrade", (request, raw, head) => {
  control.request(request);
  const open = request.url.startsWith("/open");
  const user = open ? "anonymous" : subjectOf(credential(request));
  control.log("answer", { status: user === null ? 401 : 101 });
  if (user === null) {
    raw.end("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    return;
  }
  sockets.handleUpgrade(request, raw, head, (socket) => {
    const id = (ids += 1);
    let clean = false;
    control.log("open", { id, user, extensions: socket.extensions });
    socket.on("message", (data, binary) => {
      control.message(id, binary ? data : data.toString());
      socket.send(data, { binary });
    });
    socket.on("ping", (data) => control.log("ping", { id, size: data.length }));
    socket.on("pong", () => control.log("pong", { id }));
    socket.on("error", (error) => control.log("error", { id, message: error.message }));
    socket.on("close", (code, reason) => {
      clean = code !== 1006;
      if (clean) {
        control.log("close", { id, code: code === 1005 ? null : code, reason: reason.toString() });
      }
      control.log("end", { id, clean });
    });
  });
});

// Its own heartbeat, as the README of `ws` recommends it.
setInterval(() => all().forEach((socket) => socket.ping()), 500).unref();

server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.log(`listening on ${server.address().port}`);
});
process.on("SIGTERM", () => {
  for (const socket of all()) socket.close(1001, "the server stops");
  setTimeout(() => process.exit(0), 200);
});
