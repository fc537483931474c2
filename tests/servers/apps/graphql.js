// A graphql-ws server, as its recipe for `ws` has it: GraphQL over `graphql-transport-ws`.
//
//   node graphql.js PORT
//
// `onConnect` accepts a connection_init whose payload has a good `token`. `hello` is a query,
// `echo(text:)` a mutation, `ticks` a subscription with an event each 200 ms.
// Actions (see control.js): close?code=&reason=, sockets.

import { WebSocketServer, packages } from "../packages.js";
import { subjectOf } from "../tokens.js";
import { Control, webServer } from "./control.js";

// Both from one package: graphql refuses a schema that another copy of it made.
const { buildSchema } = packages("graphql");
const { useServer } = packages("graphql-ws/use/ws");

const schema = buildSchema(`
  type Query { hello: String }
  type Mutation { echo(text: String!): String }
  type Subscription { ticks: Int }
`);

async function* ticks() {
  for (let n = 1; ; n += 1) {
    yield { ticks: n };
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const control = new Control({
  close: ({ code, reason }) => {
    const all = [...sockets.clients];
    for (const socket of all) socket.close(Number(code), reason);
    return all.length;
  },
  sockets: () => sockets.clients.size,
});

const server = webServer((request, response) => {
  if (control.handle(request, response)) return;
  response.writeHead(404).end();
});
server.on("upgrade", (request) => control.request(request));
const sockets = new WebSocketServer({
  server,
  path: "/graphql",
  handleProtocols: (offered) => (offered.has("graphql-transport-ws") ? "graphql-transport-ws" : false),
});

let ids = 0;
sockets.on("connection", (socket) => {
  const id = (ids += 1);
  control.log("open", { id });
  socket.on("message", (data) => control.message(id, data.toString()));
  socket.on("pong", () => control.log("pong", { id }));
  socket.on("close", (code, reason) => {
    if (code !== 1006) control.log("close", { id, code: code === 1005 ? null : code, reason: reason.toString() });
    control.log("end", { id, clean: code !== 1006 });
  });
});

useServer(
  {
    schema,
    roots: {
      query: { hello: () => "hello" },
      mutation: { echo: ({ text }) => text },
      subscription: { ticks },
    },
    onConnect: ({ connectionParams }) => {
      const user = subjectOf(connectionParams?.token);
      control.log("connect", { user });
      return user !== null;
    },
    connectionInitWaitTimeout: 3_000,
  },
  sockets,
  500, // its own WebSocket pings, ms
);

server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.log(`listening on ${server.address().port}`);
});
process.on("SIGTERM", () => {
  for (const socket of sockets.clients) socket.close(1001, "Going away");
  setTimeout(() => process.exit(0), 200);
});
