// The page: a query as it is typed, its hits in one column or two, and what keys do.

import { ask, byId, element, milliseconds, whole } from "./dom.js";
import { Colours, hitCard, queryChips } from "./hits.js";
import { describeSystem, Pruning } from "./pruning.js";
import { Reading } from "./reading.js";

const PAUSE = 90; // milliseconds without a key before a query is sent
const TOP = 10;

const field = byId("query");
let site, columns, pruning, reading, asked, timer;

async function start() {
  const address = new URLSearchParams(location.search), cap = Number(address.get("cap")) || null;
  try {
    site = (await ask("/api/site", {})).answer;
  } catch (error) {
    byId("empty").hidden = false;
    byId("empty").replaceChildren(element("p", { class: "notice bad", role: "alert" }, error.message));
    return;
  }
  field.maxLength = site.max_query_characters;
  byId("facts").textContent = site.systems.map(describeSystem).join(" · ") + (site.task ? ` · task ${site.task}` : "");
  document.title = `Search ${site.systems[0].name}`;
  columns = site.systems.map(makeColumn);
  byId("asked").hidden = columns.length > 1;
  byId("columns").classList.toggle("two", columns.length > 1);
  byId("columns").append(...columns.map(column => column.root));
  makeTabs();
  reading = new Reading();
  pruning = new Pruning(site.systems, site.task, () => send(0));
  field.value = field.value || address.get("q") || "";
  try { await pruning.start(cap); } catch { /* the page works without it */ }
  field.addEventListener("input", () => send(PAUSE));
  byId("form").addEventListener("submit", event => { event.preventDefault(); send(0); });
  document.addEventListener("keydown", keys);
  send(0);
}

function makeColumn(system, number) {
  const took = element("p", { class: "soft number" }), hits = element("ol", { class: "hits" }), below = element("div");
  // Two systems may ask with other terms and weights: each shows its own.
  const asked = site.systems.length > 1 ? element("ul", { class: "chips", "aria-label": byId("asked").getAttribute("aria-label") }) : byId("asked");
  const label = element("h2", { id: `column${number}` }, element("bdi", {}, system.name));
  const root = element("section", { class: `column${number ? "" : " shown"}`, "aria-labelledby": label.id },
    element("header", {}, label, took), asked !== byId("asked") && asked, hits, below);
  return { system, root, took, asked, hits, below, answer: null };
}

function makeTabs() {
  byId("tabs").hidden = byId("sideways").hidden = columns.length < 2;
  byId("tabs").append(...columns.map((column, number) => element("button", {
    type: "button", "aria-pressed": String(!number), onclick: () => {
      columns.forEach((one, other) => one.root.classList.toggle("shown", other === number));
      [...byId("tabs").children].forEach((tab, other) => tab.setAttribute("aria-pressed", String(other === number)));
    },
  }, column.system.name)));
}

function send(pause) {
  clearTimeout(timer);
  timer = setTimeout(search, pause);
}

// Answers of an earlier query are dropped; hits stay until those that take their places are there.
async function search() {
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked, query = field.value.trim();
  remember(query);
  byId("empty").hidden = query !== "";
  if (!query) { showNothing(); return; }
  byId("columns").hidden = false;
  byId("columns").classList.add("busy");
  await Promise.all(columns.map(async column => {
    try {
      const cap = column.system.can_prune ? pruning.cap : null;
      const { answer, took } = await ask("/api/search", { query, system: column.system.number, top: TOP, cap }, signal);
      if (signal.aborted) return;
      column.answer = answer;
      column.problem = null;
      column.took.textContent = `search ${milliseconds(answer.search_ms)} · round trip ${milliseconds(took)}`;
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      column.answer = null;
      column.problem = error.message;
    }
  }));
  if (signal.aborted) return;
  byId("columns").classList.remove("busy");
  draw();
}

function remember(query) {
  const address = new URLSearchParams();
  if (query) address.set("q", query);
  if (pruning.cap !== null) address.set("cap", pruning.cap);
  const text = address.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}

function showNothing() {
  byId("columns").hidden = true;
  byId("columns").classList.remove("busy");
  byId("status").textContent = "";
  columns.forEach(column => { column.answer = null; column.asked.replaceChildren(); column.hits.replaceChildren(); });
  if (byId("empty").childElementCount) return;
  const some = [...site.queries].sort((a, b) => a.length - b.length).slice(0, Math.max(12, Math.ceil(site.queries.length / 2)));
  for (let last = some.length - 1; last > 0; last -= 1) {
    const other = Math.floor(Math.random() * (last + 1));
    [some[last], some[other]] = [some[other], some[last]];
  }
  byId("empty").replaceChildren(
    element("h2", {}, some.length ? `Some of the ${whole(site.num_queries)} queries of ${site.task}` : "Hits come as you type."),
    element("ul", { class: "chips" }, ...some.slice(0, 8).map(query => element("li", {},
      element("button", { class: "chip", type: "button", dir: "auto", onclick: () => { field.value = query; field.focus(); send(0); } }, query)))));
}

function draw() {
  const answers = columns.map(column => column.answer).filter(Boolean);
  const colours = new Colours(answers.flatMap(answer => answer.query_terms.map(term => term.token)));
  columns.forEach((column, number) => drawColumn(column, columns[1 - number], colours));
  byId("status").textContent = columns.map(column => column.problem ?? `${column.system.name}: ${column.answer.hits.length} hits`).join("; ");
}

function drawColumn(column, beside, colours) {
  const { answer } = column;
  column.asked.replaceChildren(...(answer ? queryChips(answer.query_terms, colours) : []));
  if (!answer) {
    column.took.textContent = "";
    replaceHits(column, []);
    column.below.replaceChildren(element("p", { class: "notice bad", role: "alert" }, column.problem, " ",
      element("button", { type: "button", onclick: () => send(0) }, "Try again")));
    return;
  }
  const best = Math.max(...answer.hits.map(hit => hit.score), 1e-9);
  const open = (hit, number) => () => reading.open(answer.hits, number, {
    query: answer.query, system: column.system, cap: answer.cap, colours,
    closed: (id, last) => focusHit(column, id, last),
  });
  replaceHits(column, answer.hits.map((hit, number) => hitCard(
    { ...hit, moved: answer.cap === null ? 0 : hit.whole_rank === null ? "new" : hit.whole_rank - hit.rank },
    { colours, best, other: { rank: beside?.answer ? rankIn(beside.answer, hit.id) : 0, name: beside?.system.name }, open: open(hit, number), hover: twins })));
  column.below.replaceChildren(...below(answer));
  if (answer.ndcg !== null) column.took.prepend(`nDCG@10 ${answer.ndcg.toFixed(3)} · `);
}

// The focus stays at the document that has it.
function replaceHits(column, cards) {
  const number = buttons(column).indexOf(document.activeElement), id = column.hits.children[number]?.dataset.id;
  column.hits.replaceChildren(...cards);
  if (number >= 0) focusHit(column, id, number);
}

function focusHit(column, id, number) {
  const all = buttons(column), same = [...column.hits.children].findIndex(card => card.dataset.id === id);
  (all[same] ?? all[number] ?? field).focus();
}

const rankIn = (answer, id) => answer.hits.find(hit => hit.id === id)?.rank ?? 0;

function below(answer) {
  if (!answer.hits.length) {
    const kept = answer.cap === null ? "." : ` among its largest ${answer.cap} weights.`;
    const why = answer.query_terms.length ? `No document has a term of this query${kept}` : "No word of this query is known.";
    return [element("p", { class: "notice" }, why)];
  }
  if (answer.cap === null) return [];
  const moved = answer.hits.filter(hit => hit.whole_rank !== hit.rank).length;
  const left = answer.left.map(one => `${one.id} (${one.whole_rank})`).join(", ");
  return [element("p", { class: "left" }, moved ? `${moved} of ${answer.hits.length} hits moved.` : "No hit moved.",
    left && element("span", {}, " Left: ", element("bdi", {}, left)))];
}

// The same document in both columns is shown as one.
function twins(id) {
  document.querySelectorAll(".hit").forEach(card => card.classList.toggle("twin", columns.length > 1 && id !== null && card.dataset.id === id));
}

const buttons = column => [...column.hits.querySelectorAll(".open")];

function keys(event) {
  if (event.isComposing || event.altKey || event.ctrlKey || event.metaKey || reading.dialog.open) return;
  const active = document.activeElement, column = columns.find(one => one.hits.contains(active));
  if (event.key === "/" && active !== field) {
    field.focus();
    field.select();
  } else if (active === field && event.key === "ArrowDown") {
    const first = columns.filter(one => one.root.offsetParent !== null).flatMap(buttons)[0];
    if (!first) return;
    first.focus();
  } else if (column && ["ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "Escape"].includes(event.key)) {
    const here = buttons(column).indexOf(active), other = columns.find(one => one !== column);
    const target = { ArrowDown: buttons(column)[here + 1], ArrowUp: buttons(column)[here - 1] ?? field, Escape: field }[event.key]
      ?? (event.key.match(/Left|Right/) && other?.root.offsetParent ? buttons(other)[Math.min(here, buttons(other).length - 1)] : null);
    target?.focus();
  } else return;
  event.preventDefault();
}

start();
