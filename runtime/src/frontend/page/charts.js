// The two charts. A chart has a fixed number of elements; an update changes their attributes.

const [CHART_HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [180, 68, 10, 10, 24];

/** The seconds that both charts show: a minute while nothing is older. */
function chartSeconds() {
  const { totals, seconds, now } = remembered;
  const age = (rows, column) => (rows.length > 0 ? now - rows.at(rows.length - 1, column) : 0);
  return Math.max(age(totals, AT), age(seconds, 0)) <= 60 ? 60 : KEPT_SECONDS;
}

/** The smallest of 1, 2 and 5 times a power of ten that is at least `value`. */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999999);
}

class Chart {
  constructor(id, kinds) {
    this.svg = byId(id);
    this.levels = [0, 0.5, 1].map((share) => ({
      share,
      line: drawn("line", { class: "grid" }, this.svg),
      text: drawn("text", { "text-anchor": "end", "aria-hidden": "true" }, this.svg),
    }));
    this.times = [5, 4, 3, 2, 1, 0].map((ago) => ({ ago, text: drawn("text", { "aria-hidden": "true" }, this.svg) }));
    for (const { ago, text } of this.times) {
      text.setAttribute("text-anchor", ago === 0 ? "end" : ago === 5 ? "start" : "middle");
    }
    this.paths = kinds.map((kind) => drawn("path", { class: kind }, this.svg));
    this.width = 0;
    this.seconds = 0;
  }

  /** Lays the chart out for its width and these greatest values. */
  scale(most, unit) {
    const [width, seconds] = [this.svg.clientWidth || 600, chartSeconds()];
    this.most = most > 0 ? roundedUp(most) : 1;
    if (width !== this.width || seconds !== this.seconds) {
      [this.width, this.seconds] = [width, seconds];
      this.svg.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT}`);
      for (const { ago, text } of this.times) {
        const before = (ago * seconds) / 5;
        setText(text, ago === 0 ? "now" : before < 60 ? `−${before} s` : `−${before / 60} min`);
        text.setAttribute("x", this.x(remembered.now - before).toFixed(1));
        text.setAttribute("y", String(CHART_HEIGHT - 6));
        text.setAttribute("visibility", width < 480 && ago % 5 !== 0 ? "hidden" : "visible");
      }
      for (const { share, line, text } of this.levels) {
        const y = this.y(share * this.most).toFixed(1);
        for (const [key, value] of [["x1", LEFT], ["x2", width - RIGHT], ["y1", y], ["y2", y]]) line.setAttribute(key, value);
        text.setAttribute("x", String(LEFT - 6));
        text.setAttribute("y", String(Number(y) + 4));
      }
    }
    for (const { share, text } of this.levels) setText(text, number(share * this.most) + (share === 1 ? unit : ""));
  }

  x(at) {
    const ago = Math.min(this.seconds, Math.max(0, remembered.now - at));
    return LEFT + (this.width - LEFT - RIGHT) * (1 - ago / this.seconds);
  }

  y(value) {
    return TOP + (CHART_HEIGHT - TOP - BOTTOM) * (1 - value / this.most);
  }

  draw(...paths) {
    paths.forEach((path, index) => this.paths[index].setAttribute("d", path));
  }
}

const ttftChart = new Chart("ttft-chart", ["range", "dots"]);
const tokensChart = new Chart("tokens-chart", ["second", "first"]);

function drawTtfts() {
  const { seconds, now } = remembered;
  let [shown, most] = [0, 0];
  while (shown < seconds.length && now - seconds.at(shown, 0) <= KEPT_SECONDS) {
    most = Math.max(most, seconds.at(shown, 2));
    shown += 1;
  }
  ttftChart.scale(most, " ms");
  let [ranges, dots] = ["", ""];
  for (let back = shown - 1; back >= 0; back -= 1) {
    const x = ttftChart.x(seconds.at(back, 0) + 0.5).toFixed(1);
    const y = ttftChart.y(seconds.at(back, 1)).toFixed(1);
    ranges += `M${x} ${y}V${ttftChart.y(seconds.at(back, 2)).toFixed(1)}`;
    dots += `M${x} ${y}h0`;
  }
  ttftChart.draw(ranges, dots);
  const values = newestTtfts(now - KEPT_SECONDS);
  show("ttft-alt", values.length === 0
    ? "No request has ended in the last five minutes."
    : `Last five minutes: ${count(values.length, "request")}, median ${milliseconds(quantile(values, 0.5))}, ` +
      `p99 ${milliseconds(quantile(values, 0.99))}, longest ${milliseconds(values[values.length - 1])}.`);
}

function drawTokens() {
  const { totals, now } = remembered;
  let [shown, most] = [0, 0];
  const perSecond = (back, column) => {
    const passed = totals.at(back, AT) - totals.at(back + 1, AT);
    return passed > 0 ? (totals.at(back, column) - totals.at(back + 1, column)) / passed : 0;
  };
  while (shown + 1 < totals.length && now - totals.at(shown, AT) <= KEPT_SECONDS) {
    most = Math.max(most, perSecond(shown, SAMPLED), perSecond(shown, COMPUTED));
    shown += 1;
  }
  tokensChart.scale(most, "/s");
  const path = (column) => {
    let text = "";
    for (let back = shown - 1; back >= 0; back -= 1) {
      const x = tokensChart.x(totals.at(back, AT)).toFixed(1);
      text += `${text ? "L" : "M"}${x} ${tokensChart.y(perSecond(back, column)).toFixed(1)}`;
    }
    return text;
  };
  tokensChart.draw(path(COMPUTED), path(SAMPLED));
  const mean = (column) =>
    shown > 0 ? (totals.at(0, column) - totals.at(shown, column)) / (now - totals.at(shown, AT)) : 0;
  show("tokens-alt", `Average of the last ${duration(shown > 0 ? now - totals.at(shown, AT) : 0)}: answers ` +
    `${number(mean(SAMPLED))} tokens/s, prompts computed here ${number(mean(COMPUTED))} tokens/s. Highest: ${number(most)} tokens/s.`);
}

function drawCharts() {
  drawTtfts();
  // A proxy does not count tokens.
  if (!isFleet(latest)) drawTokens();
}
