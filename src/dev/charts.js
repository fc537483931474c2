// The live numbers as small charts: SVG drawn here, text in the page for everyone to read.

const SVG = "http://www.w3.org/2000/svg";
export const HISTORY = 60;

const STAGES = {
  tls_handshake: "TLS handshake",
  request_head: "request head",
  authenticating: "authenticating",
  open: "open",
  refused: "refused, lingering",
  closing: "closing",
};
const NUMBERS = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
// Ends that nobody needs to look into.
const CALM = new Set(["client_closed", "backend_closed", "health_check", "going_away", "lifetime"]);

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function compact(value) {
  return NUMBERS.format(value);
}

/** One row of a bar chart: label, bar, number. */
function row(label, value, most, bad) {
  const item = document.createElement("li");
  item.className = `${value === 0 ? "zero" : ""} ${bad ? "bad" : ""}`.trim();
  const name = document.createElement("span");
  name.textContent = label;
  name.title = label;
  const stretched = { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" };
  const svg = shape("svg", stretched);
  svg.append(shape("rect", { class: "track", width: 100, height: 6 }));
  // A single connection among a thousand is still to be seen.
  const width = value === 0 ? 0 : Math.max(1.5, (100 * value) / most);
  svg.append(shape("rect", { class: "fill", width, height: 6 }));
  const number = document.createElement("b");
  number.textContent = compact(value);
  item.append(name, svg, number);
  return item;
}

export function drawStages(list, connections) {
  const most = Math.max(1, ...Object.values(connections));
  const rows = Object.entries(STAGES).map(([key, label]) => {
    const item = row(label, connections[key] ?? 0, most, key === "refused");
    item.dataset.stage = key;
    item.dataset.value = connections[key] ?? 0;
    return item;
  });
  list.replaceChildren(...rows);
}

export function drawCloses(list, closes) {
  const some = Object.entries(closes).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  if (some.length === 0) {
    const none = document.createElement("li");
    none.className = "none";
    none.textContent = "none yet";
    list.replaceChildren(none);
    return;
  }
  const most = some[0][1];
  list.replaceChildren(...some.map(([cause, count]) => {
    const item = row(cause, count, most, !CALM.has(cause));
    item.dataset.cause = cause;
    item.dataset.value = count;
    return item;
  }));
}

/** `history` holds `[from, to]` pairs, the newest last. */
export function drawRates(place, history) {
  const most = Math.max(1, ...history.flat());
  const x = (index) => (100 * (HISTORY - history.length + index)) / (HISTORY - 1);
  const y = (rate) => 58 - (54 * rate) / most;
  const line = (which) => history.map((pair, index) => `${x(index)},${y(pair[which])}`).join(" ");
  const [from, to] = history.at(-1) ?? [0, 0];
  const svg = shape("svg", {
    viewBox: "0 0 100 60",
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `Messages per second over the last minute: now ${compact(from)} from clients `
      + `and ${compact(to)} to clients, at most ${compact(most)}`,
  });
  for (const level of [0, 0.5, 1]) {
    const height = y(level * most);
    svg.append(shape("line", { class: "grid", x1: 0, x2: 100, y1: height, y2: height }));
  }
  if (history.length > 0) {
    const area = `${x(0)},58 ${line(1)} 100,58`;
    svg.append(shape("polygon", { class: "area", points: area }));
    svg.append(shape("polyline", { class: "to", points: line(1) }));
    svg.append(shape("polyline", { class: "from", points: line(0) }));
  }
  place.replaceChildren(svg);
}

export { compact };
