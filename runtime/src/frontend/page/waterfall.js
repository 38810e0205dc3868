// The waterfall of the last requests. Its rows are made once.

const PARTS = [
  ["read", "read"],
  ["queue", "queue"],
  ["node", "node, until its first byte"],
  ["route", "route"],
  ["pages", "wait for pages"],
  ["prefill", "prefill"],
  ["handover", "exposed hand-over"],
  ["decode", "decode"],
  ["failed", "until the failure"],
];

/** The parts that a proxy sees. It sees no end of the first token, so its decode is the answer after the first byte. */
const PARTS_OF_FLEETS = ["read", "node", "decode", "failed"];
const DECODE = PARTS.findIndex(([kind]) => kind === "decode");

/** The parts of a forwarded request in milliseconds, in the order of `PARTS`. */
function forwardedParts({ read_ms, first_byte_ms, total_ms }) {
  const answered = first_byte_ms !== undefined;
  const parts = {
    read: read_ms,
    node: answered ? first_byte_ms - read_ms : 0,
    decode: answered ? total_ms - first_byte_ms : 0,
    failed: answered ? 0 : total_ms - read_ms,
  };
  return PARTS.map(([kind]) => Math.max(0, parts[kind] ?? 0));
}

/** The parts of a request in milliseconds, in the order of `PARTS`, as the header Server-Timing has them. */
function partsOf(request) {
  if (request.attempts !== undefined) return forwardedParts(request);
  const { read_ms, queue_ms, total_ms } = request;
  if (request.prefilled_ms === undefined) {
    return [read_ms, queue_ms, 0, 0, 0, 0, 0, 0, Math.max(0, total_ms - read_ms - queue_ms)];
  }
  const { routed_ms, placed_ms, prefilled_ms, exposed_ms, first_token_ms, decode_ms, disaggregated } = request;
  const handover = disaggregated ? exposed_ms : 0;
  const decode = first_token_ms + decode_ms - prefilled_ms - handover;
  const parts = [read_ms, queue_ms, 0, routed_ms, placed_ms - routed_ms, prefilled_ms - placed_ms, handover, decode, 0];
  return parts.map((part) => Math.max(0, part));
}

const legend = new Map();

function legendOfParts() {
  for (const [kind, name] of PARTS) {
    const item = element("li", { within: byId("legend") });
    const svg = drawn("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, item);
    drawn("rect", { width: 12, height: 12, rx: 2, class: `part-${kind}` }, svg);
    item.append(name);
    legend.set(kind, item);
  }
  chooseLegend(false);
}

/** Shows the parts that this process sees. */
function chooseLegend(ofFleet) {
  for (const [kind, item] of legend) setVisible(item, ofFleet ? PARTS_OF_FLEETS.includes(kind) : kind !== "node");
}

function waterfallRow() {
  const row = element("tr", { within: byId("waterfall") });
  row.hidden = true;
  const head = element("th", { within: row });
  head.scope = "row";
  const cells = [head, element("td", { within: row }), element("td", { within: row })];
  const svg = drawn("svg", { viewBox: "0 0 1000 14", preserveAspectRatio: "none", "aria-hidden": "true" }, cells[2]);
  const bars = PARTS.map(([kind]) => drawn("rect", { height: 14, class: `part-${kind}` }, svg));
  const lines = (cell) => [element("span", { within: cell }), element("small", { within: cell })];
  const [when, what] = lines(cells[0]);
  const [first, total] = lines(cells[1]);
  return { row, bars, when, what, first, total, parts: element("small", { within: cells[2] }) };
}

legendOfParts();
const waterfallRows = Array.from({ length: RECENT_MAX }, waterfallRow);

/** The outcome and the nodes of a forwarded request in words. */
function forwardedSummary({ outcome, status, node, prefiller, attempts }) {
  const words = [outcome === "answered" ? outcome : `✕ ${outcome.replaceAll("_", " ")}`];
  if (outcome === "rejected") words.push(`status ${status}`);
  if (node !== undefined) words.push(`at ${node}`);
  if (prefiller !== undefined) words.push(`prefiller ${prefiller}`);
  if (attempts > 1) words.push(`${attempts} attempts`);
  return words.join(", ");
}

/** The outcome and the tokens of a request in words. */
function summary(request) {
  if (request.attempts !== undefined) return forwardedSummary(request);
  const outcome = ["stop", "length"].includes(request.outcome) ? request.outcome : `✕ ${request.outcome}`;
  if (request.prompt_tokens === undefined) return outcome;
  const where = request.disaggregated ? "prefilled by a peer" : "prefilled here";
  return `${outcome}, ${number(request.prompt_tokens)} → ${count(request.completion_tokens, "token")}, ${where}`;
}

function drawWaterfall() {
  const leavesOut = byId("first-only").checked;
  const all = recent.map((request) => {
    const parts = partsOf(request);
    if (leavesOut) parts[DECODE] = 0;
    return { parts, length: parts.reduce((sum, part) => sum + part, 0) };
  });
  const longest = Math.max(...all.map(({ length }) => length), 0.001);
  waterfallRows.forEach((row, index) => {
    setVisible(row.row, index < recent.length);
    if (index >= recent.length) return;
    const [request, { parts }] = [recent[index], all[index]];
    setText(row.when, clockTime(request.arrived));
    setText(row.what, summary(request));
    setText(row.first, milliseconds(ttftOf(request)));
    setText(row.total, milliseconds(request.total_ms));
    let x = 0;
    row.bars.forEach((bar, part) => {
      const width = (parts[part] / longest) * 1000;
      bar.setAttribute("x", x.toFixed(2));
      bar.setAttribute("width", width.toFixed(2));
      x += width;
    });
    const texts = PARTS.map(([, name], part) => [name, parts[part]]).filter(([, ms]) => ms >= 0.05);
    setText(row.parts, texts.map(([name, ms]) => `${name} ${number(ms)}`).join(", "));
  });
  setVisible(byId("waterfall-table"), recent.length > 0);
  setVisible(byId("no-requests"), recent.length === 0);
}

/** The local time of day of a time in the format of RFC 3339. */
function clockTime(text) {
  const time = new Date(text);
  const two = (part) => String(part).padStart(2, "0");
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

byId("first-only").addEventListener("change", drawWaterfall);
