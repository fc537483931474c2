// Runs the checks of all families, or of those that are named; says how many held.

import { summary } from "../clients/harness.js";
import { browserChecks } from "./checks/browser.js";
import { cableChecks } from "./checks/cable.js";
import { channelsChecks } from "./checks/channels.js";
import { graphqlChecks } from "./checks/graphql.js";
import { phoenixChecks } from "./checks/phoenix.js";
import { throughChecks } from "./checks/phoenix_through.js";
import { wireChecks } from "./checks/phoenix_wire.js";
import { wsChecks } from "./checks/ws.js";
import { MODE, skippedChecks } from "./place.js";

// Those that take longest come first.
const FAMILIES = {
  cable: cableChecks,
  channels: channelsChecks,
  browser: browserChecks,
  phoenix: phoenixChecks,
  through: throughChecks,
  wire: wireChecks,
  ws: wsChecks,
  graphql: graphqlChecks,
};

const named = process.argv.slice(2);
const begun = Date.now();
const chosen = Object.keys(FAMILIES).filter((name) => named.length === 0 || named.includes(name));
await Promise.all(chosen.map(async (name) => Promise.all(await FAMILIES[name]())));
const seconds = Math.round((Date.now() - begun) / 1000);
console.log(`${MODE}, ${seconds} s, ${skippedChecks()} checks left out`);
process.exit(summary());
