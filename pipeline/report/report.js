"use strict";

const LONG = 12; // rows above which a table gets a box to filter them
const NARROW = 500; // pixels
const PRINTED = 680; // pixels between the margins of A4 and of letter paper
const CONFIG = { displayModeBar: false, responsive: true };
const charts = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Long titles would be cut off beside a narrow plot.
function wrapped(title, width) {
  if (!title || width >= NARROW) return title;
  return { ...title, text: title.text.replace(/(.{12,}?) /g, "$1<br>") };
}

function themed(layout, width) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true, fixedrange: true };
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: colour("--panel"), font: { color: colour("--ink") } },
    margin: { l: 10, r: 16, t: 10, b: 45 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...layout.xaxis, ...axis, title: wrapped(layout.xaxis.title, width) },
    yaxis: { ...layout.yaxis, ...axis, title: wrapped(layout.yaxis.title, width) },
  };
}

function draw(figure) {
  const holder = figure.querySelector("div");
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  charts.push({ holder, data, layout });
  Plotly.newPlot(holder, data, themed(layout, holder.clientWidth), CONFIG);
}

function redraw() {
  // While printing, the holders still have the width of the screen.
  const width = matchMedia("print").matches ? PRINTED : undefined;
  for (const { holder, data, layout } of charts) {
    // Not relayout: it takes a height as the end of responsiveness.
    Plotly.react(holder, data, { ...themed(layout, width ?? holder.clientWidth), width }, CONFIG);
    if (!width && holder.offsetParent) Plotly.Plots.resize(holder); // back from paper
  }
}

function sortValue(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.sort === undefined) return cell.firstChild?.textContent ?? "";
  const number = Number(cell.dataset.sort);
  return Number.isNaN(number) ? cell.dataset.sort : number;
}

function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const isMissing = (value) => value === "–" || value === "";
  const rows = [...body.rows].map((row) => [sortValue(row, column), row]);
  rows.sort(([a], [b]) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b); // a missing value stays last
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return descending ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : head.classList.contains("number"); // numbers: best first
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
    });
  });
}

function makeFilterable(table) {
  const rows = [...table.tBodies[0].rows];
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = "Filter rows";
  box.setAttribute("aria-label", `Filter rows: ${table.caption.textContent}`);
  const told = document.createElement("span");
  told.setAttribute("role", "status");
  const line = document.createElement("p");
  line.className = "filter";
  line.append(box, told);
  table.closest(".scroll").before(line);
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const shown = rows.filter((row) => !row.hidden).length;
    told.textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
  });
}

for (const table of document.querySelectorAll("table")) {
  const length = table.tBodies[0].rows.length;
  if (length > 1) makeSortable(table);
  if (length > LONG) makeFilterable(table);
}
for (const figure of document.querySelectorAll(".chart")) if (!figure.closest("details")) draw(figure);
for (const details of document.querySelectorAll("details")) {
  // A chart in a closed part has no width, so it is drawn when the part is first opened.
  details.addEventListener("toggle", () => details.querySelectorAll(".chart").forEach(draw), { once: true });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", redraw);
