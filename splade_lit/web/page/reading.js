// A document in full: its text with what was found in it, the terms of the query, and all terms of its vector.

import { ask, byId, decimal, element, marked, places, whole } from "./dom.js";
import { chip } from "./hits.js";

const FIRST_DIMS = 60;

export class Reading {
  constructor() {
    this.dialog = byId("dialog");
    this.hits = [];
    byId("close").addEventListener("click", () => this.dialog.close());
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    this.dialog.addEventListener("click", event => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("keydown", event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !event.altKey && !event.ctrlKey && !event.metaKey) { event.preventDefault(); this.turn(step); }
    });
    this.dialog.addEventListener("close", () => { this.finish(); });
  }

  finish() {
    this.asked?.abort();
    highlight(null);
    byId("sheet").replaceChildren();
    this.closed(this.hits[this.number].id, this.number);
  }

  // `hits` are those of a column, `closed` is told id and number of the one that was shown last.
  open(hits, number, { query, system, cap, colours, closed }) {
    Object.assign(this, { hits, query, system, cap, colours, closed });
    if (!this.dialog.open) this.dialog.showModal();
    byId("sheet").focus({ preventScroll: true });
    this.show(number);
  }

  turn(step) {
    const number = this.number + step;
    if (number >= 0 && number < this.hits.length) this.show(number);
  }

  async show(number) {
    this.number = number;
    const hit = this.hits[number];
    this.asked?.abort();
    this.asked = new AbortController();
    const focused = document.activeElement, buttons = [byId("previous"), byId("next")];
    buttons[0].disabled = number === 0;
    buttons[1].disabled = number === this.hits.length - 1;
    if (focused.disabled) buttons.find(one => one !== focused).focus(); // what is disabled would lose it
    highlight(null);
    const { signal } = this.asked, name = () => {
      byId("title").textContent = hit.id;
      byId("place").textContent = `${this.system.name} · hit ${hit.rank} · score ${decimal(hit.score)}`;
    };
    if (!byId("sheet").childElementCount) name(); // else what is shown stays until the next is there
    try {
      const asked = { id: hit.id, query: this.query, system: this.system.number, cap: this.cap };
      const { answer } = await ask("/api/document", asked, signal);
      if (signal.aborted) return;
      name();
      this.draw(answer);
    } catch (error) {
      if (error.name === "AbortError") return;
      name();
      byId("sheet").replaceChildren(element("p", { class: "notice bad", role: "alert" }, error.message));
    }
  }

  draw(found) {
    const text = this.text(found), aside = element("aside", {}, ...this.terms(found), ...this.dims(found));
    const within = byId("sheet").contains(document.activeElement);
    byId("sheet").replaceChildren(text, aside);
    byId("sheet").scrollTop = 0;
    if (within) byId("sheet").focus({ preventScroll: true });
  }

  text(found) {
    if (found.text === null) return element("div", { class: "soft" }, "The index holds no texts.");
    const kind = term => this.colours.of(found.terms[term].token), at = places(found.text);
    const start = at(found.read_from), end = at(found.read_until ?? Infinity), from = found.read_from;
    const before = found.text.slice(0, start).trim(), read = found.text.slice(start, end), rest = found.text.slice(end).trim();
    const marks = found.marks.map(mark => ({ ...mark, start: mark.start - from, end: mark.end - from }));
    this.read = element("div", { class: "text", dir: "auto" }, ...marked(read, marks, kind));
    this.at = number => at(number) - start;
    return element("div", { tabindex: 0, "aria-label": "Text of the document" },
      before && element("div", { class: "text unread", dir: "auto" }, before),
      before && element("p", { class: "hint" }, "The model has read from here on."), before && element("hr"), this.read,
      rest && element("hr"), rest && element("p", { class: "hint" }, "The model has read up to here."),
      rest && element("div", { class: "text unread", dir: "auto" }, rest),
      !found.is_whole && element("p", { class: "hint" }, "The text goes on; it is too long to be shown whole."));
  }

  terms(found) {
    if (!found.terms.length) return [];
    const known = this.system.knows_tokens;
    const rows = found.terms.map(term => this.pointing(term.raised_by, element("tr", { class: !term.share && "off" },
      element("td", {}, element("ul", { class: "chips" }, labelled(term, this.colours))),
      element("td", {}, decimal(term.query_weight)), element("td", {}, decimal(term.document_weight)), element("td", {}, decimal(term.share)),
      known && element("td", { class: "word" }, this.raising(term.raised_by)))));
    const names = ["term", "query", "document", "product"];
    return [element("h3", {}, "Terms of the query ", element("small", {}, `score ${decimal(found.score)}`)),
      element("table", {}, element("thead", {}, element("tr", {}, ...names.map(name => element("th", { scope: "col" }, name)),
        known && element("th", { scope: "col", class: "word" }, "raised by"))), element("tbody", {}, ...rows))];
  }

  dims(found) {
    const list = element("ul", { class: "dims" }), added = found.dims.filter(dim => dim.in_text === false).length;
    const choices = { all: () => true, "in the text": dim => dim.in_text, added: dim => dim.in_text === false };
    const show = (name, all) => {
      const chosen = found.dims.filter(choices[name]), shown = all ? chosen : chosen.slice(0, FIRST_DIMS);
      list.replaceChildren(...shown.map(dim => this.dim(dim, found.dims[0].weight)));
      more.hidden = shown.length === chosen.length;
      more.firstChild.textContent = `Show all ${whole(chosen.length)}`;
      more.firstChild.onclick = () => show(name, true);
      buttons.forEach(button => button.setAttribute("aria-pressed", String(button.dataset.name === name)));
    };
    const more = element("p", {}, element("button", { type: "button" }, ""));
    more.className = "legend";
    const buttons = Object.keys(choices).map(name => element("button", { type: "button", "data-name": name, onclick: () => show(name, false) },
      name === "added" ? `added ${added}` : name === "all" ? `all ${whole(found.dims.length)}` : `in the text ${found.dims.length - added}`));
    const open = found.dims.every(dim => dim.in_text === null);
    show("all", false);
    return [element("h3", {}, this.system.kind === "bm25" ? "Words of the document" : "Terms of the document ",
      found.num_dims > found.dims.length && element("small", {}, `the first ${whole(found.dims.length)} of ${whole(found.num_dims)}`)),
    !open && this.system.kind !== "bm25" && element("div", { class: "legend" }, ...buttons), list, more];
  }

  dim(dim, most) {
    const weight = element("span", { class: "weight" }), added = dim.in_text === false;
    weight.style.width = `${100 * dim.weight / most}%`;
    const raised = dim.raised_by && dim.raised_by.token !== dim.token && element("small", {}, " by ", this.raising(dim.raised_by));
    return this.pointing(dim.raised_by, element("li", { class: added && "added" },
      element("span", {}, element("bdi", {}, added ? `(${dim.token})` : dim.token), raised), weight, element("span", { class: "number" }, decimal(dim.weight))));
  }

  // The token that raised a term; with the focus on it, it is shown in the text.
  raising(token) {
    const name = element("bdi", {}, token?.token ?? "");
    if (!token || token.start === null) return name;
    const show = () => highlight(this.read, this.at(token.start), this.at(token.end));
    return element("button", { class: "raising", type: "button", onfocus: show, onclick: show, onblur: () => highlight(null) }, name);
  }

  // Shows the token that raised a term while the pointer is on the term.
  pointing(token, made) {
    if (token && token.start !== null) {
      made.addEventListener("mouseenter", () => highlight(this.read, this.at(token.start), this.at(token.end)));
      made.addEventListener("mouseleave", () => highlight(null));
    }
    return made;
  }
}

function labelled(term, colours) {
  const made = chip(term, colours);
  made.querySelector("b").remove();
  if (!term.share) made.classList.add("off");
  return made;
}

function highlight(holder, start, end) {
  if (!CSS.highlights) return;
  CSS.highlights.delete("raising");
  if (!holder) return;
  const range = document.createRange(), walker = document.createTreeWalker(holder, NodeFilter.SHOW_TEXT);
  let before = 0, begun = false;
  while (walker.nextNode()) {
    const node = walker.currentNode, after = before + node.length;
    if (!begun && start < after) { range.setStart(node, start - before); begun = true; }
    if (begun && end <= after) { range.setEnd(node, end - before); break; }
    before = after;
  }
  if (!begun) return;
  CSS.highlights.set("raising", new Highlight(range));
  range.startContainer.parentElement.scrollIntoView({ block: "nearest" });
}
