// Starts a gateway, runs all checks against it, says how many held.

import { Gateway, summary } from "./harness.js";
import { endingChecks, expiry, nodeChecks, version } from "./node_clients.js";

const gateway = await Gateway.start();
console.log(`${gateway.admin}, Node ${process.version}, ws ${version("ws")}`);
const slow = expiry(gateway);
try {
  await nodeChecks(gateway);
  if (process.argv[2] !== "node") {
    const { browserChecks } = await import("./browser.js");
    await browserChecks(gateway);
  }
  await slow;
  await endingChecks(gateway);
} finally {
  gateway.process.kill("SIGKILL");
}
process.exit(summary());
