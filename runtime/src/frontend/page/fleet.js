// The page of a proxy: its nodes instead of peers, and the parts of a request that a proxy sees.

/** What only the page of a node shows, and what only that of a proxy shows. */
const OF_NODES = ["tile-tokens", "tile-queue", "tile-ring", "tile-prefills", "peers-section", "tokens-figure"];
const OF_FLEETS = ["tile-nodes", "tile-live", "nodes-section"];

const isFleet = (snapshot) => snapshot.nodes !== undefined;

/** Shows the sections that this process has. */
function chooseSections(snapshot) {
  for (const id of OF_NODES) setVisible(byId(id), !isFleet(snapshot));
  for (const id of OF_FLEETS) setVisible(byId(id), isFleet(snapshot));
  chooseLegend(isFleet(snapshot));
}

function drawFleetTiles(snapshot) {
  const { nodes, ready, live, totals } = snapshot;
  show("requests-note", `${number(totals.finished)} finished, ${number(totals.failed)} failed, ${number(totals.retried)} sent to another node`);
  // Senders take no requests.
  const decode = nodes.filter(({ report }) => report?.decodes ?? true);
  show("nodes-ready", `${number(ready)} of ${number(decode.length)}`);
  show("live", number(live));
  const known = nodes.filter((node) => node.known);
  const sum = (field) => known.reduce((total, node) => total + node.report[field], 0);
  show("live-note", `forwarded now; ${number(sum("waiting"))} wait at nodes`);
  show("pages", share(sum("used_pages"), sum("pool_pages")));
  show("pages-note", `${number(sum("used_pages"))} of ${number(sum("pool_pages"))} used, all nodes`);
}

function nodeRow() {
  const row = element("tr", { within: byId("nodes") });
  const head = element("th", { within: row });
  head.scope = "row";
  const cells = Array.from({ length: 3 }, () => element("td", { within: row }));
  return {
    row,
    address: element("span", { within: head }),
    role: element("span", { kind: "quiet", within: head }),
    state: element("span", { within: cells[0] }),
    reason: element("span", { kind: "quiet", within: cells[0] }),
    work: element("span", { within: cells[1] }),
    waiting: element("span", { kind: "quiet", within: cells[1] }),
    requests: element("span", { within: cells[2] }),
    failed: element("span", { kind: "quiet", within: cells[2] }),
  };
}

/** The state of a node in words, and whether it is a good one. */
function stateOf({ ready, paused, known, report, fault }) {
  if (!known) return [fault === undefined ? "✕ no report yet" : "✕ left out", false];
  if (paused) return ["✕ paused: its connections broke", false];
  if (report.state !== "ok" && report.state !== "degraded") return [`✕ ${report.state}`, false];
  const word = report.state === "degraded" ? "degraded" : ready ? "ready" : "prefills only";
  return [`✓ ${word}`, true];
}

const nodeRows = [];

function drawNodes(nodes) {
  while (nodeRows.length < nodes.length) nodeRows.push(nodeRow());
  while (nodeRows.length > nodes.length) nodeRows.pop().row.remove();
  nodes.forEach((node, index) => {
    const [cells, { report }] = [nodeRows[index], node];
    const [word, isGood] = stateOf(node);
    setText(cells.address, node.address);
    setText(cells.role, report === undefined ? "" : `${report.role}, ${report.model}`);
    setText(cells.state, word);
    cells.state.className = isGood ? "ready" : "gone";
    setText(cells.reason, node.fault ?? report?.reason ?? "");
    setText(cells.work, report === undefined ? "" : `${number(report.running)} running, ${number(report.decoding)} decode`);
    const pages = report === undefined ? "" : `, ${share(report.used_pages, report.pool_pages)} of ${count(report.pool_pages, "page")} used`;
    setText(cells.waiting, report === undefined ? "" : `${number(report.waiting)} waiting${pages}`);
    setText(cells.requests, `${number(node.answered)} answered`);
    setText(cells.failed, node.failed > 0 ? `${number(node.failed)} failed` : "");
  });
  setVisible(byId("nodes-table"), nodes.length > 0);
  setVisible(byId("no-nodes"), nodes.length === 0);
}
