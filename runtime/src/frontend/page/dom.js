// Small helpers for the document. All text reaches it as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

/** Sets the text of an element that has at most one text node, and changes nothing if it is the same. */
function setText(element, text) {
  const node = element.firstChild;
  if (node === null) {
    if (text !== "") element.append(text);
  } else if (node.data !== text) {
    node.data = text;
  }
}

const show = (id, text) => setText(byId(id), text);

function setVisible(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** A new element with a class and text. */
function element(name, { kind = "", text = "", within } = {}) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.append(text);
  if (within) within.append(made);
  return made;
}

/** A new element of a drawing. */
function drawn(name, attributes, within) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  within.append(made);
  return made;
}

/** A number with about three digits. */
function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 100) return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");
  return String(Number(value.toPrecision(3)));
}

function milliseconds(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 10000 ? `${number(value / 1000)} s` : `${number(value)} ms`;
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value)} ${units[unit]}`;
}

function duration(seconds) {
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days > 0) return `${days} d ${hours % 24} h`;
  if (hours > 0) return `${hours} h ${minutes % 60} min`;
  if (minutes > 0) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds)} s`;
}

const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
