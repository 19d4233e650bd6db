// Hits: a card each, with the text, and the terms that made the score as a bar and as a list.

import { decimal, element, marked } from "./dom.js";

// Each term of a query has a colour of its own, the same in both columns; beyond six all are grey.
export class Colours {
  constructor(tokens) {
    this.numbers = new Map([...new Set(tokens.map(stem))].map((token, number) => [token, Math.min(number, 6)]));
  }
  of(token) { return `c${this.numbers.get(stem(token)) ?? 6}`; }
}

const stem = token => token.replace(/(?<=..[^s])s$/, ""); // BM25 has words without their plural

export function queryChips(terms, colours) {
  return terms.map(term => element("li", { class: `chip ${colours.of(term.token)}` },
    element("bdi", {}, term.token), element("b", {}, decimal(term.weight))));
}

export function hitCard(hit, { colours, best, other, open, hover }) {
  const kind = term => colours.of(hit.terms[term].token);
  const card = element("li", { class: "hit", onmouseenter: () => hover(hit.id), onmouseleave: () => hover(null) },
    element("h3", {},
      element("span", { class: "rank" }, String(hit.rank)),
      element("button", { class: "open", type: "button", onclick: open, onfocus: () => hover(hit.id), onblur: () => hover(null) },
        element("bdi", {}, hit.id)),
      ...badges(hit, other),
      element("span", { class: "score" }, element("span", { class: "unseen" }, "score "), decimal(hit.score)),
    ),
    hit.excerpt && element("p", { class: "excerpt", dir: "auto" },
      !hit.excerpt.is_start && "… ", ...marked(hit.excerpt.text, hit.excerpt.marks, kind), !hit.excerpt.is_end && " …"),
    bar(hit, colours, best),
    element("ul", { class: "chips", "aria-label": "Terms that made the score" }, ...hit.terms.map(term => chip(term, colours))),
  );
  card.dataset.id = hit.id;
  return card;
}

function badges(hit, other) {
  const made = [];
  if (hit.grade !== null && hit.grade > 0) made.push(element("span", { class: "badge good", title: `grade ${hit.grade} in the task` }, "relevant"));
  if (hit.moved === "new") made.push(element("span", { class: "badge new", title: "not among the first hundred with all weights" }, "new"));
  else if (hit.moved) {
    const up = hit.moved > 0;
    made.push(element("span", { class: `badge ${up ? "up" : "down"}`, title: `rank ${hit.whole_rank} with all weights` },
      element("span", { class: "unseen" }, up ? "up by " : "down by "), `${up ? "▲" : "▼"} ${Math.abs(hit.moved)}`));
  }
  if (other.rank) made.push(element("span", { class: "badge", title: `rank ${other.rank} in ${other.name}` },
    element("span", { class: "unseen" }, "rank beside "), `⇄ ${other.rank}`));
  return made;
}

// As long as the score beside the best one, cut into the shares of terms; hatched where the model added the term.
function bar(hit, colours, best) {
  const made = element("div", { class: "bar", "aria-hidden": "true" });
  for (const term of hit.terms.filter(term => term.share > 0)) {
    const part = element("span", { class: `${colours.of(term.token)}${term.in_text === false ? " added" : ""}`, title: describe(term) });
    part.style.flex = `0 1 ${100 * term.share / best}%`;
    made.append(part);
  }
  return made;
}

export function chip(term, colours) {
  const added = term.in_text === false && term.document_weight !== 0;
  return element("li", { class: `chip ${colours.of(term.token)}${added ? " added" : ""}`, title: describe(term) },
    element("bdi", {}, added ? `(${term.token})` : term.token),
    element("b", {}, decimal(term.share), element("span", { class: "unseen" }, `, ${weights(term)}`)));
}

const describe = term => `${term.token}: ${weights(term)}`;

function weights(term) {
  const from = term.in_text === null || !term.document_weight ? "" : term.in_text ? ", in the text" : ", added by the model";
  return `query ${decimal(term.query_weight)} × document ${decimal(term.document_weight)} = ${decimal(term.share)}${from}`;
}
