// The packages that `run` installed under target/, which are in no folder above these files.

import { createRequire } from "node:module";
import { join } from "node:path";

export const TARGET = process.env.SERVERS_TARGET;
export const packages = createRequire(join(TARGET, "node", "package.json"));
export const { WebSocket, WebSocketServer } = packages("ws");
