"use strict";
const specs = JSON.parse(document.getElementById("data").textContent);
const quiet = "rgb(128 128 128 / 0.35)";
const config = {
  font: "system-ui, sans-serif",
  axis: { labelColor: "currentColor", titleColor: "currentColor", gridColor: quiet, domainColor: quiet, tickColor: quiet,
    labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
  legend: { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 12 },
  view: { stroke: null },
};
specs.forEach((spec, i) => {
  const box = document.getElementById("chart-" + i);
  window.vegaEmbed(box, spec, { renderer: "svg", actions: false, config })
    .catch((error) => { box.textContent = "The chart cannot be drawn: " + error.message; });
});

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.ariaSort = down ? "descending" : "ascending";
    const valueOf = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [valueOf(a), valueOf(b)];
      if (x === "-" || y === "-") return x === y ? 0 : x === "-" ? 1 : -1;  // what was not measured is last
      const order = Number(x) - Number(y) || (isNaN(x) || isNaN(y) ? x.localeCompare(y) : 0);
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
