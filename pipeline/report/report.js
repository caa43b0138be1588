"use strict";

const charts = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(layout) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true, fixedrange: true };
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: colour("--panel"), font: { color: colour("--ink") } },
    margin: { l: 10, r: 16, t: 10, b: 45 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
  };
}

function draw(figure) {
  const holder = figure.querySelector("div");
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  charts.push({ holder, layout });
  Plotly.newPlot(holder, data, themed(layout), { displayModeBar: false, responsive: true });
}

function redraw() {
  for (const { holder, layout } of charts) Plotly.relayout(holder, themed(layout));
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

for (const table of document.querySelectorAll("table")) if (table.tBodies[0].rows.length > 1) makeSortable(table);
for (const figure of document.querySelectorAll(".chart")) if (!figure.closest("details")) draw(figure);
for (const details of document.querySelectorAll("details")) {
  // A chart in a closed part has no width, so it is drawn when the part is first opened.
  details.addEventListener("toggle", () => details.querySelectorAll(".chart").forEach(draw), { once: true });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", redraw);
