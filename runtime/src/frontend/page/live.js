// The stream of snapshots, the API key, and what happens when the connection is lost.

const KEY_NAME = "baton.api_key";
const PAUSES_S = [1, 2, 4, 8, 15, 30];
/** The server sends a snapshot each second. */
const SILENCE_MS = 6000;
const LINE_MAX = 16 << 20;

/** Ends the pause before the next attempt. */
let tryNow = () => {};
let latest = null;

function storedKey() {
  try {
    return sessionStorage.getItem(KEY_NAME) ?? "";
  } catch {
    return "";
  }
}

function keyHeader() {
  const key = storedKey();
  return key === "" ? {} : { authorization: `Bearer ${key}` };
}

function askForKey() {
  const refused = storedKey() !== "";
  show("key-text", `${refused ? "The server refused this key." : "The server needs its API key (request.api_key)."} The key stays in this tab.`);
  if (byId("key-section").hidden) {
    setVisible(byId("key-section"), true);
    byId("key").focus();
  }
}

/** Calls `act` with each line of a response as it comes. While it waits, it holds no text but that of an incomplete line. */
async function eachLine(response, act) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  const readSome = async () => {
    const { value, done } = await reader.read();
    const lines = done ? [""] : (rest + value).split("\n");
    rest = lines.pop();
    if (rest.length > LINE_MAX) throw new Error("The server sent a line that is too long.");
    lines.forEach(act);
    return done;
  };
  while (!(await readSome()));
}

/** The sentence in the body of an error. */
async function sentenceOf(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return error.message ?? error;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function draw() {
  if (latest === null || document.hidden) return;
  drawTiles();
  if (isFleet(latest)) {
    drawFleetTiles(latest);
    drawNodes(latest.nodes);
  } else {
    drawNodeTiles(latest);
    drawPeers(latest.peers);
  }
  drawCharts();
  drawWaterfall();
}

function take(snapshot) {
  if (latest === null || isFleet(latest) !== isFleet(snapshot)) chooseSections(snapshot);
  latest = snapshot;
  remember(snapshot);
  updateChat(snapshot);
  setVisible(byId("trouble"), false);
  setVisible(byId("key-section"), false);
  document.body.classList.remove("old");
  // Also in a hidden tab, whose title is seen.
  drawHeader(snapshot);
  draw();
}

/** Shows snapshots until the stream ends. Returns what went wrong, and how many snapshots came. */
async function follow() {
  const abort = new AbortController();
  let heard = performance.now();
  const watch = setInterval(() => {
    if (performance.now() - heard > SILENCE_MS) abort.abort();
  }, 1000);
  let taken = 0;
  try {
    const response = await fetch("/debug/live", { headers: keyHeader(), signal: abort.signal, cache: "no-store" });
    if (!response.ok) {
      if (response.status === 401) askForKey();
      return { taken, status: response.status, sentence: response.status === 401 ? "The server needs an API key." : await sentenceOf(response) };
    }
    await eachLine(response, (line) => {
      heard = performance.now();
      take(JSON.parse(line));
      taken += 1;
    });
    return { taken, status: 200, sentence: "The server ended the stream." };
  } catch (error) {
    const sentences = { AbortError: "The server is silent.", SyntaxError: "The server sent no snapshot." };
    return { taken, status: 0, sentence: sentences[error.name] ?? (taken > 0 ? "The connection broke off." : "The server cannot be reached.") };
  } finally {
    clearInterval(watch);
    abort.abort();
  }
}

function showTrouble({ status, sentence }, pause) {
  const last = latest === null ? "" : ` The figures are those of ${clockTime(latest.time)}.`;
  const next = status === 401 ? "" : ` The next attempt is in ${pause} s.`;
  show("trouble-text", `${sentence}${last}${next}`);
  setVisible(byId("trouble"), status !== 401);
  document.body.classList.add("old");
  if (status === 200 && latest?.state === "draining") return;
  setState(status === 401 ? "key needed" : "lost", "");
  document.title = `Baton: ${status === 401 ? "key needed" : "no connection"}`;
}

async function run() {
  let failures = 0;
  for (;;) {
    const ended = await follow();
    if (ended.status === 200 && ended.taken > 60) {
      // The server ends each stream after some minutes.
      failures = 0;
      continue;
    }
    if (ended.taken > PAUSES_S.length) failures = 0;
    const pause = PAUSES_S[Math.min(failures, PAUSES_S.length - 1)];
    failures += 1;
    showTrouble(ended, pause);
    await new Promise((resolve) => {
      tryNow = resolve;
      if (ended.status !== 401) setTimeout(resolve, pause * 1000);
    });
  }
}

byId("again").addEventListener("click", () => tryNow());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  if (!/^[\x21-\x7e]*$/.test(key)) {
    show("key-text", "A key has letters, digits and signs of ASCII only. Look for quotation marks that were pasted with it.");
    return;
  }
  try {
    sessionStorage.setItem(KEY_NAME, key);
  } catch {
    show("key-text", "This browser keeps no key, because its storage for the page is off.");
    return;
  }
  byId("key").value = "";
  setVisible(byId("key-section"), false);
  tryNow();
});
document.addEventListener("visibilitychange", draw);
addEventListener("resize", draw);
run();
