// Starts a gateway, runs all checks against it, says how many held.

import { dialectChecks } from "./dialects.js";
import { Gateway, summary } from "./harness.js";
import { endingChecks, expiry, nodeChecks, version } from "./node_clients.js";

const only = process.argv[2];

/** The libraries of each dialect, in Node and, unless it is left out, in a browser. */
async function dialects() {
  if (only === "node") return dialectChecks();
  const { launch } = await import("./browser.js");
  const browser = await launch();
  try {
    await dialectChecks(browser);
  } finally {
    await browser.close();
  }
}

async function dev() {
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
}

if (only !== "browser") await dialects();
if (only !== "dialects") await dev();
process.exit(summary());
