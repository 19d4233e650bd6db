// Elements, made of texts and never of markup: what documents and queries hold is shown as it is.

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes and children; texts become text nodes, nothing (null, undefined, false) is left out.
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined && child !== false));
  return made;
}

export const byId = id => document.getElementById(id);

export const decimal = (value, digits = 2) => value.toFixed(digits);

export const whole = value => Math.round(value).toLocaleString("en");

export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (count >= 1000 && place < units.length - 1) { count /= 1000; place += 1; }
  return `${place && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[place]}`;
}

export const milliseconds = value => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

// The server counts characters, JavaScript halves of pairs: the place in a string of each character that counts.
export function places(text) {
  const starts = [0];
  for (const character of text) starts.push(starts.at(-1) + character.length);
  return number => starts[Math.min(number, starts.length - 1)];
}

// A text with the places of terms in it marked; `kind` gives the class of a term.
export function marked(text, marks, kind) {
  const at = places(text), parts = [];
  let end = 0;
  for (const mark of marks) {
    const start = at(mark.start), stop = at(mark.end);
    if (start < end) continue;
    parts.push(text.slice(end, start), element("mark", { class: kind(mark.term) }, text.slice(start, stop)));
    end = stop;
  }
  parts.push(text.slice(end));
  return parts;
}

export async function ask(path, parameters, signal) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  const begun = performance.now();
  let response;
  try {
    response = await fetch(`${path}?${new URLSearchParams(given)}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running?");
  }
  const answer = await response.json().catch(() => ({ detail: `The server has failed (${response.status}).` }));
  if (!response.ok) throw new Error(answer.detail);
  return { answer, took: performance.now() - begun };
}
