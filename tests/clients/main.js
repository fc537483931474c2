// Starts a gateway, runs all checks against it, says how many held.

import { Gateway, summary } from "./harness.js";
import { endingChecks, expiry, nodeChecks, version } from "./node_clients.js";

const only = process.argv[2];
const gateway = await Gateway.start();
console.log(`${gateway.admin}, Node ${process.version}, ws ${version("ws")}`);
try {
  if (only !== "browser") {
    await Promise.all([expiry(gateway), nodeChecks(gateway)]);
  }
  if (only !== "node") {
    const { browserChecks } = await import("./browser.js");
    await browserChecks(gateway);
    const { originChecks } = await import("./origins.js");
    await originChecks();
  }
  await endingChecks(gateway);
} finally {
  gateway.process.kill("SIGKILL");
}
process.exit(summary());
