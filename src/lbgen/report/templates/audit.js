"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const ROWS = 40;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function fill(select, names) {
  const chosen = select.selectedOptions[0]?.textContent;
  select.replaceChildren(...names.map((name, place) => element("option", name, { value: place })));
  select.value = Math.max(0, names.indexOf(chosen));
}

// Categories of a dataset whose name holds what was typed, as their places.
function matching(dataset, typed) {
  const wanted = typed.trim().toLowerCase();
  return dataset.categories.map((name, place) => place).filter((place) => dataset.categories[place].toLowerCase().includes(wanted));
}

// ---- the heat map ----

const heat = { rows: ROWS, column: null };

function heatTable() {
  const dataset = data.datasets[byId("heat-dataset").value];
  const attribute = dataset.attributes[byId("heat-attribute").value];
  const width = attribute.values.length;
  const row = (category) => attribute.counts.slice(category * width, (category + 1) * width);
  const totals = attribute.values.map((_, value) => dataset.categories.reduce((sum, _, c) => sum + attribute.counts[c * width + value], 0));
  const all = totals.reduce((a, b) => a + b, 0);
  const sizes = dataset.categories.map((_, category) => row(category).reduce((a, b) => a + b, 0));
  const share = (category, value) => attribute.counts[category * width + value] / (sizes[category] || 1);
  return { dataset, attribute, totals, all, sizes, share, strong: new Set(attribute.significant) };
}

function sortedCategories(table) {
  const { dataset, attribute, totals, all, share } = table;
  const found = matching(dataset, byId("heat-filter").value);
  const names = dataset.categories;
  const byName = (a, b) => names[a].localeCompare(names[b]);
  if (heat.column !== null) return found.sort((a, b) => share(b, heat.column) - share(a, heat.column) || byName(a, b));
  if (byId("heat-sort").value === "name") return found.sort(byName);
  const distance = names.map((_, c) => attribute.values.reduce((sum, _, v) => sum + Math.abs(share(c, v) - totals[v] / all), 0));
  return found.sort((a, b) => distance[b] - distance[a] || byName(a, b));
}

function drawHeat() {
  const table = heatTable(), { dataset, attribute, totals, all, sizes, share, strong } = table;
  const order = sortedCategories(table), width = attribute.values.length;
  const head = element("tr", null);
  head.append(element("th", "category"));
  attribute.values.forEach((value, place) => {
    const button = element("button", value, { type: "button", "aria-pressed": heat.column === place });
    button.onclick = () => { heat.column = heat.column === place ? null : place; drawHeat(); };
    const cell = element("th", null);
    cell.append(button, element("small", `${(100 * totals[place] / all).toFixed(0)}% of all`));
    head.append(cell);
  });
  const rows = order.slice(0, heat.rows).map((category) => {
    const line = element("tr", null);
    line.append(element("th", dataset.categories[category], { scope: "row" }));
    for (let value = 0; value < width; value++) {
      const part = share(category, value), lift = part / (totals[value] / all || 1);
      const cell = element("td", `${(100 * part).toFixed(0)}%`, { title: `${attribute.counts[category * width + value]} of ${sizes[category]} different images, lift ${lift.toFixed(1)}` });
      cell.style.setProperty("--share", (0.85 * part).toFixed(3));
      if (strong.has(category * width + value)) cell.className = "strong";
      line.append(cell);
    }
    return line;
  });
  byId("heat").tHead.replaceChildren(head);
  byId("heat").tBodies[0].replaceChildren(...rows);
  byId("heat-more").hidden = order.length <= heat.rows;
  byId("heat-count").textContent = `${Math.min(heat.rows, order.length)} of ${order.length} categories`;
}

function chooseHeatDataset() {
  fill(byId("heat-attribute"), data.datasets[byId("heat-dataset").value].attributes.map((attribute) => attribute.name));
  resetHeat();
}

function resetHeat() { heat.rows = ROWS; heat.column = null; drawHeat(); }

// ---- the samples ----

let shown = ROWS;

function thumbnails(uris) {
  const box = element("div", null, { class: "thumbs" });
  box.append(...uris.map((uri) => element("img", null, { src: uri, alt: "" })));
  return box;
}

function drawGrid() {
  const dataset = data.datasets[byId("grid-dataset").value];
  const found = matching(dataset, byId("grid-filter").value);
  byId("grid").replaceChildren(...found.slice(0, shown).map((category) => {
    const block = element("div", null);
    block.append(element("p", `${dataset.categories[category]} (${dataset.images[category]})`), thumbnails(dataset.samples[category]));
    return block;
  }));
  byId("grid-more").hidden = found.length <= shown;
}

for (const kind of ["heat", "grid"]) fill(byId(`${kind}-dataset`), data.datasets.map((dataset) => dataset.name));
byId("heat-dataset").onchange = chooseHeatDataset;
byId("heat-attribute").onchange = resetHeat;
byId("heat-sort").onchange = resetHeat;
byId("heat-filter").oninput = () => { heat.rows = ROWS; drawHeat(); };
byId("heat-more").onclick = () => { heat.rows += 5 * ROWS; drawHeat(); };
byId("grid-dataset").onchange = byId("grid-filter").oninput = () => { shown = ROWS; drawGrid(); };
byId("grid-more").onclick = () => { shown += 5 * ROWS; drawGrid(); };
for (const place of document.querySelectorAll("[data-thumbs]")) place.replaceWith(thumbnails(data.thumbnails[place.dataset.thumbs]));
for (const button of document.querySelectorAll("button.explain")) {
  button.onclick = () => {
    const text = button.closest("tr").nextElementSibling;
    text.hidden = !text.hidden;
    button.setAttribute("aria-expanded", !text.hidden);
  };
}

// ---- wide tables ----

// A shadow and a line above it say that a table goes on to the side.
function markCut(box) {
  const left = box.scrollWidth - box.clientWidth - box.scrollLeft;
  box.parentElement.classList.toggle("cut", left > 2);
  box.parentElement.previousElementSibling.hidden = box.scrollWidth - box.clientWidth <= 2;
}

const resized = new ResizeObserver((entries) => entries.forEach((entry) => markCut(entry.target.closest(".scroll"))));
for (const box of document.querySelectorAll(".scroll")) {
  const frame = element("div", null, { class: "frame" });
  box.replaceWith(element("p", "Scroll the table sideways →", { class: "hint" }), frame);
  frame.append(box);
  box.onscroll = () => markCut(box);
  resized.observe(box);
  resized.observe(box.firstElementChild);
}
chooseHeatDataset();
drawGrid();
