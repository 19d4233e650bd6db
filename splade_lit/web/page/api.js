// The API as openapi.json tells it, with a form to try each operation; nothing comes from another server.

import { byId, element, milliseconds } from "./dom.js";

const described = await (await fetch("/openapi.json")).json();
const shortType = schema => schema.$ref?.split("/").at(-1)
  ?? (schema.anyOf ? schema.anyOf.map(shortType).join(" or ") : schema.type === "array" ? `list of ${shortType(schema.items)}` : schema.type ?? "");

byId("version").textContent = `version ${described.info.version}`;
byId("description").textContent = described.info.description;
byId("operations").append(...Object.entries(described.paths).map(([path, methods]) => operation(path, methods.get)));
byId("records").append(...Object.entries(described.components.schemas).map(([name, schema]) => record(name, schema)));

function operation(path, told) {
  const parameters = told.parameters ?? [], curl = element("pre", {}), result = element("pre", { hidden: true, tabindex: 0, "aria-label": "Answer" });
  const took = element("p", { class: "soft number" });
  const fields = parameters.map(one => element("input", {
    name: one.name, placeholder: one.schema.default ?? (one.required ? "" : "none"), required: one.required,
    value: one.name === "query" && one.required ? "search" : null,
  }));
  const given = () => fields.filter(one => one.value !== "").map(one => [one.name, one.value]);
  const tell = () => {
    const quoted = given().map(([name, value]) => ` \\\n  --data-urlencode '${`${name}=${value}`.replaceAll("'", "'\\''")}'`);
    curl.textContent = `curl -G ${location.origin}${path}${quoted.join("")}`;
  };
  fields.forEach(one => one.addEventListener("input", tell));
  tell();
  const send = async event => {
    event.preventDefault();
    const begun = performance.now();
    result.hidden = false;
    try {
      const response = await fetch(`${path}?${new URLSearchParams(given())}`);
      const answer = await response.json();
      took.textContent = `status ${response.status}, ${milliseconds(performance.now() - begun)}`;
      result.textContent = JSON.stringify(answer, null, 2);
    } catch {
      result.textContent = "The server does not answer.";
    }
  };
  const labels = parameters.map((one, number) => element("label", {}, element("code", {}, one.name), fields[number],
    element("span", { class: "soft" }, ...withCode(one.description))));
  const answers = told.responses["200"].content["application/json"].schema;
  return element("section", { class: "panel operation" },
    element("h2", {}, element("code", {}, `GET ${path}`), element("span", {}, told.summary), element("span", { class: "soft" }, shortType(answers))),
    element("form", { onsubmit: send }, ...labels, element("button", { type: "submit" }, "Try it")), curl, took, result);
}

// What stands between backticks as code.
function withCode(text = "") {
  return text.split("`").map((part, number) => number % 2 ? element("code", {}, part) : part);
}

function record(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([field, one]) => element("tr", {},
    element("td", {}, element("code", {}, field)), element("td", {}, shortType(one)), element("td", {}, ...withCode(one.description))));
  return element("details", { class: "record" }, element("summary", {}, name),
    element("p", { class: "soft" }, schema.description ?? ""), element("table", {}, element("tbody", {}, ...rows)));
}
