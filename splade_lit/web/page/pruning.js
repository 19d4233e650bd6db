// The slider that cuts documents to their largest weights, and what that does to size and quality.

import { ask, byId, bytes, decimal, element, svg, whole } from "./dom.js";

const WIDTH = 100, HEIGHT = 40, WAIT = 1000, MOST_ERRORS = 6;

export class Pruning {
  constructor(systems, task, changed) {
    this.systems = systems.filter(system => system.can_prune || task); // others have one figure, their nDCG@10
    this.task = task;
    this.changed = changed;
    this.curves = [];
    this.cap = null;
    byId("cap").addEventListener("input", () => this.choose(this.steps[Number(byId("cap").value)]));
  }

  async start(cap) {
    if (!this.systems.length) return;
    await this.read();
    this.cap = this.steps.includes(cap) ? cap : null;
    byId("cap").max = this.steps.length - 1;
    byId("cap").value = this.steps.indexOf(this.cap);
    const slides = this.steps.length > 1;
    byId("pruning").hidden = !slides && !this.task;
    byId("pruning").classList.toggle("fixed", !slides);
    this.draw();
    this.follow();
  }

  // nDCG@10 comes as it is measured. After an error the next wait is twice as long.
  async follow() {
    let errors = 0;
    while (this.curves.some(curve => !curve.is_complete) && errors < MOST_ERRORS) {
      await new Promise(resolve => setTimeout(resolve, WAIT * 2 ** errors));
      try { await this.read(); } catch { errors += 1; continue; }
      errors = 0;
      this.draw();
    }
  }

  async read() {
    const found = await Promise.all(this.systems.map(system => ask("/api/pruning", { system: system.number })));
    this.curves = found.map(one => one.answer);
    this.barred = this.curves.find((_, number) => this.systems[number].can_prune); // whose sizes are drawn
    const caps = this.curves.flatMap(curve => curve.points.map(point => point.cap)).filter(cap => cap !== null);
    this.steps = [...[...new Set(caps)].sort((a, b) => a - b), null];
  }

  choose(cap) {
    this.cap = cap;
    this.draw();
    this.changed();
  }

  // A cap above the most dims of an index leaves all.
  point(curve, cap) {
    return curve.points.find(point => point.cap === cap) ?? curve.points.at(-1);
  }

  draw() {
    const kept = this.cap === null ? "all" : `largest ${this.cap}`;
    byId("kept").replaceChildren(kept);
    byId("cap").setAttribute("aria-valuetext", kept);
    byId("curve").replaceChildren(...this.barred ? [this.chart()] : []);
    // The middle of the knob, half a rem from its ends, goes from the middle of the first bar to that of the last.
    const count = this.steps.length;
    byId("cap").style.width = `calc(${100 * (count - 1) / count}% + 1rem)`;
    byId("cap").style.marginInlineStart = `calc(${50 / count}% - .5rem)`;
    byId("figures").replaceChildren(...this.curves.map((curve, number) => this.figures(curve, number)));
  }

  figures(curve, number) {
    const now = this.point(curve, this.cap), all = curve.points.at(-1), second = number ? " second" : "";
    const row = (key, label, value, before) => [
      element("dt", {}, key && element("span", { class: `key ${key}` }), label),
      element("dd", {}, value), element("dd", {}, this.cap === null || !this.systems[number].can_prune ? "" : `of ${before}`)];
    const rows = this.systems[number].can_prune ? [
      row(curve === this.barred ? "block" : "", "postings", bytes(now.num_bytes), bytes(all.num_bytes)),
      row("", "weights a document", decimal(now.active_dims, 1), decimal(all.active_dims, 1))] : [];
    if (this.task) {
      const shown = point => point.ndcg !== null ? decimal(point.ndcg, 3) : curve.is_complete ? "unknown" : "…";
      rows.push(row(`line${second}`, "nDCG@10", shown(now), shown(all)));
    }
    return element("section", { "aria-label": this.systems[number].name },
      this.systems.length > 1 && element("h2", {}, this.systems[number].name), element("dl", {}, ...rows.flat()));
  }

  // Bars: size of the posting lists. Lines: nDCG@10, from 0. Each step stands above its place on the slider.
  chart() {
    const count = this.steps.length, place = this.steps.indexOf(this.cap), slot = WIDTH / count;
    const label = this.task ? "Size and nDCG@10 by weights kept" : "Size by weights kept";
    const made = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
    const most = this.barred.points.at(-1).num_bytes || 1;
    this.steps.forEach((cap, number) => {
      const height = HEIGHT * this.point(this.barred, cap).num_bytes / most;
      made.append(svg("rect", { x: number * slot + slot * .15, y: HEIGHT - height, width: slot * .7, height, class: number === place && "now" }));
    });
    this.curves.forEach((curve, number) => {
      const known = this.steps.map((cap, step) => [step, this.point(curve, cap).ndcg]).filter(([, ndcg]) => ndcg !== null);
      const top = Math.max(...this.curves.flatMap(one => one.points.map(point => point.ndcg ?? 0)), 1e-9);
      const at = known.map(([step, ndcg]) => `${(step + .5) * slot},${HEIGHT - .95 * HEIGHT * ndcg / top}`);
      made.append(svg("polyline", { points: at.join(" "), class: `line${number ? " second" : ""}` }));
    });
    return made;
  }
}

export const describeSystem = system =>
  `${system.name}: ${whole(system.num_documents)} documents` + (system.active_dims === null ? "" : `, ${decimal(system.active_dims, 1)} ${system.kind === "bm25" ? "words" : "weights"} each`);
