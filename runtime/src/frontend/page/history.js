// What the page remembers of earlier snapshots. The memory is allocated once. Times are seconds of the server's uptime.

const KEPT_SECONDS = 300;
/** A snapshot has at most 256 requests. */
const TTFTS_MAX = KEPT_SECONDS * 256;
const RECENT_MAX = 20;

/** Rows of numbers with a fixed number of columns, of which the newest are kept. */
class Rows {
  constructor(capacity, columns) {
    this.columns = Array.from({ length: columns }, () => new Float64Array(capacity));
    this.capacity = capacity;
    this.clear();
  }

  clear() {
    this.total = 0;
  }

  get length() {
    return Math.min(this.total, this.capacity);
  }

  push(...values) {
    const place = this.total % this.capacity;
    values.forEach((value, column) => (this.columns[column][place] = value));
    this.total += 1;
  }

  /** The value of a column, `back` rows before the newest. */
  at(back, column) {
    return this.columns[column][(this.total - 1 - back) % this.capacity];
  }
}

const [AT, REQUESTS, FAILED, SAMPLED, COMPUTED] = [0, 1, 2, 3, 4];

const remembered = {
  pid: null,
  role: null,
  now: 0,
  /** Number of requests that had ended. */
  ended: 0,
  totals: new Rows(KEPT_SECONDS + 2, 5),
  ttfts: new Rows(TTFTS_MAX, 2),
  /** Of each second: the second itself, the median and the longest. */
  seconds: new Rows(KEPT_SECONDS, 3),
  values: new Float64Array(TTFTS_MAX),
};

/** The last requests, the newest first. */
let recent = [];

/** Adds a snapshot. A process that has begun again begins a new history. */
function remember(snapshot) {
  if (remembered.pid !== snapshot.pid || remembered.role !== snapshot.role || snapshot.uptime_s < remembered.now) {
    [remembered.pid, remembered.role] = [snapshot.pid, snapshot.role];
    remembered.ended = 0;
    recent = [];
    for (const rows of [remembered.totals, remembered.ttfts, remembered.seconds]) rows.clear();
  }
  const { finished, failed, sampled_tokens, prompt_tokens_computed } = snapshot.totals;
  remembered.now = snapshot.uptime_s;
  remembered.totals.push(snapshot.uptime_s, finished, failed, sampled_tokens, prompt_tokens_computed);
  const time = Date.parse(snapshot.time);
  // The first snapshot of a connection has requests that an earlier connection may have had.
  const fresh = snapshot.requests.slice(0, snapshot.ended - remembered.ended);
  remembered.ended = snapshot.ended;
  recent = [...fresh.slice(0, RECENT_MAX), ...recent].slice(0, RECENT_MAX);
  for (const request of fresh.reverse()) {
    const age = Math.max(0, (time - Date.parse(request.arrived) - request.total_ms) / 1000);
    const ttft = ttftOf(request);
    if (Number.isFinite(ttft) && age < KEPT_SECONDS) rememberTtft(snapshot.uptime_s - age, ttft);
  }
}

/** From the arrival of a request to its first token, at a proxy to the first byte of its answer; not a number if it failed. */
const ttftOf = (request) => request.first_byte_ms ?? request.read_ms + request.queue_ms + (request.first_token_ms ?? NaN);

function rememberTtft(ended, ttft) {
  const { ttfts, seconds } = remembered;
  // Answers come nearly in the order of their ends. The times here never go back.
  const at = ttfts.length > 0 ? Math.max(ended, ttfts.at(0, 0)) : ended;
  const second = Math.floor(at);
  ttfts.push(at, ttft);
  if (seconds.length === 0 || seconds.at(0, 0) < second) seconds.push(second, NaN, NaN);
  const place = (seconds.total - 1) % seconds.capacity;
  const values = newestTtfts(second);
  seconds.columns[1][place] = quantile(values, 0.5);
  seconds.columns[2][place] = values[values.length - 1];
}

/** The TTFTs since a time, sorted. The next call overwrites them. */
function newestTtfts(since) {
  const { ttfts, values } = remembered;
  let length = 0;
  while (length < ttfts.length && ttfts.at(length, 0) >= since) {
    values[length] = ttfts.at(length, 1);
    length += 1;
  }
  return values.subarray(0, length).sort();
}

function quantile(sorted, share) {
  if (sorted.length === 0) return NaN;
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}

/** How fast a total has grown in the last ten seconds. */
function rate(column) {
  const { totals, now } = remembered;
  let back = 0;
  while (back + 1 < totals.length && now - totals.at(back + 1, AT) <= 10.5) back += 1;
  const passed = totals.length === 0 ? 0 : now - totals.at(back, AT);
  return passed > 0 ? (totals.at(0, column) - totals.at(back, column)) / passed : NaN;
}
