// The header, the tiles and the table of peers.

function drawHeader(snapshot) {
  const { role, model, version, pid, uptime_s, state, reason } = snapshot;
  show("role", role);
  show("model", model);
  show("facts", `version ${version}, pid ${pid}, up ${duration(uptime_s)}`);
  setState(state, reason ?? "");
  const title = `Baton ${role}: ${state}`;
  if (document.title !== title) document.title = title;
}

/** Shows a state as a word, a sign and a colour. The live region speaks only if it changes. */
function setState(state, reason) {
  const badge = byId("state");
  const kind = ["ok", "degraded", "draining", "down", "lost"].includes(state) ? state : "unknown";
  if (badge.className !== `badge ${kind}`) badge.className = `badge ${kind}`;
  setText(badge, state === "lost" ? "no connection" : state);
  show("reason", reason);
}

const share = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–");

/** The tiles of all processes. */
function drawTiles() {
  show("requests-rate", number(rate(REQUESTS) + rate(FAILED)));
  const lastMinute = newestTtfts(remembered.now - 60);
  show("ttft-median", milliseconds(quantile(lastMinute, 0.5)));
  show("ttft-p99", milliseconds(quantile(lastMinute, 0.99)));
  show("ttft-note", lastMinute.length > 0 ? `${count(lastMinute.length, "request")} in the last minute` : "no request in the last minute");
}

function drawNodeTiles(snapshot) {
  const { queue, pages, ring, totals } = snapshot;
  show("requests-note", `${number(totals.finished)} finished, ${number(totals.failed)} failed`);
  show("tokens-rate", number(rate(SAMPLED)));
  show("tokens-note", `${number(rate(COMPUTED))} prompt tokens/s here`);
  show("queue", number(queue.waiting));
  show("queue-note", `waiting; ${number(queue.running)} of ${number(queue.concurrency)} running`);
  show("pages", share(pages.used + pages.reserved, pages.pool));
  const more = [[pages.reserved, "reserved"], [pages.cached, "cached"], [pages.quarantined, "quarantined"]];
  const noted = more.filter(([some]) => some > 0).map(([some, word]) => `, ${number(some)} ${word}`).join("");
  show("pages-note", `${number(pages.used)} of ${number(pages.pool)} used${noted}`);
  show("ring", ring.pages > 0 ? share(ring.outstanding, ring.pages) : "none");
  show("ring-note", ring.pages > 0 ? `${number(ring.outstanding)} of ${number(ring.pages)} credits outstanding` : "no peer writes here");
  show("prefills", number(snapshot.prefills));
}

/** What a peer does, in words. */
function workOf(peer) {
  const works = [];
  if (peer.sends > 0 || peer.prompts > 0) works.push("prefills for this process");
  if (peer.receives > 0 || peer.sent_pages > 0) works.push("decodes what is prefilled here");
  return works.join(", ") || "no work yet";
}

function movedOf(peer) {
  const moved = [];
  if (peer.prompts > 0) moved.push(count(peer.prompts, "prompt"));
  if (peer.pages > 0) moved.push(`received ${count(peer.pages, "page")}, ${bytes(peer.bytes)}`);
  if (peer.sent_pages > 0) moved.push(`sent ${count(peer.sent_pages, "page")}`);
  return moved.join("; ") || "nothing";
}

function peerRow() {
  const row = element("tr", { within: byId("peers") });
  const head = element("th", { within: row });
  head.scope = "row";
  const [link, moved] = [element("td", { within: row }), element("td", { within: row })];
  return {
    row,
    name: element("span", { within: head }),
    ready: element("span", { within: link }),
    work: element("span", { within: link }),
    lane: element("span", { kind: "quiet", within: link }),
    moved,
  };
}

const peerRows = [];

function drawPeers(peers) {
  while (peerRows.length < peers.length) peerRows.push(peerRow());
  while (peerRows.length > peers.length) peerRows.pop().row.remove();
  peers.forEach((peer, index) => {
    const cells = peerRows[index];
    const sessions = peer.sends + peer.receives;
    setText(cells.name, peer.name);
    setText(cells.ready, sessions > 0 ? `✓ ready, ${count(sessions, "session")}` : "✕ not connected");
    cells.ready.className = sessions > 0 ? "ready" : "gone";
    setText(cells.work, workOf(peer));
    setText(cells.lane, sessions > 0 ? `${peer.lane}, ${bytes(peer.bytes_per_second)}/s measured` : "");
    setText(cells.moved, movedOf(peer));
  });
  setVisible(byId("peers-table"), peers.length > 0);
  setVisible(byId("no-peers"), peers.length === 0);
}
