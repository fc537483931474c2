// Runs the checks of all families, or of those that are named; says how many held.

import { summary } from "../clients/harness.js";
import { phoenixChecks } from "./checks/phoenix.js";
import { MODE, skippedChecks } from "./place.js";

const FAMILIES = {
  phoenix: phoenixChecks,
};

// Checks wait most of the time; each has an application, so that only so many run beside each other.
const named = process.argv.slice(2);
const begun = Date.now();
for (const [name, checks] of Object.entries(FAMILIES)) {
  if (named.length === 0 || named.includes(name)) await Promise.all(checks());
}
const seconds = Math.round((Date.now() - begun) / 1000);
console.log(`${MODE}, ${seconds} s, ${skippedChecks()} checks skipped that need the gateway`);
process.exit(summary());
