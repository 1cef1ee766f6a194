// Filters and sorts the numbers that book/comparison.py embedded in the page.
"use strict";

const STEP = 200; // rows shown at once: a browser is slow with thousands

function comparison(root) {
  const { fields, rows, pages } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const place = Object.fromEntries(fields.map((name, index) => [name, index]));
  const columns = ["experiment", "metric", "at", "published", "here", "verdict", "reason"];
  const form = root.querySelector("form");
  const choices = [...form.querySelectorAll("select")];
  const search = form.querySelector("input");
  const table = root.querySelector("table");
  const more = root.querySelector("button.comparison-more");
  let sorted = { column: null, down: false };
  let shown = STEP;

  const isNumber = (column) => column === "published" || column === "here";
  const value = (row, column) => (isNumber(column) ? row[place[column]][0] : row[place[column]]);
  const text = (row, column) => (isNumber(column) ? row[place[column]][1] : row[place[column]]);

  function compare(a, b) {
    const [x, y] = [value(a, sorted.column), value(b, sorted.column)];
    if (x === null || y === null) return (x === null) - (y === null); // what has no number stands last
    const order = isNumber(sorted.column) ? x - y : x.localeCompare(y, "en", { numeric: true });
    return sorted.down ? -order : order;
  }

  function chosen() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter(
      (row) =>
        choices.every((choice) => !choice.value || row[place[choice.name]] === choice.value) &&
        words.every((word) => columns.some((column) => text(row, column).toLowerCase().includes(word))),
    );
    return sorted.column ? found.sort(compare) : found;
  }

  function cell(line, row, column) {
    const first = line.cells.length === 0;
    const element = line.appendChild(document.createElement(first ? "th" : "td"));
    if (first) element.scope = "row";
    const page = column === "experiment" && Object.hasOwn(pages, row[place.experiment]) && pages[row[place.experiment]];
    const target = page ? element.appendChild(document.createElement("a")) : element;
    if (page) target.href = page;
    target.textContent = text(row, column);
  }

  function show() {
    const found = chosen();
    const body = document.createElement("tbody");
    for (const row of found.slice(0, shown)) {
      const line = body.insertRow();
      line.dataset.verdict = row[place.verdict];
      columns.forEach((column) => cell(line, row, column));
    }
    table.tBodies[0].replaceWith(body);
    form.querySelector("output").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    more.hidden = found.length <= shown;
  }

  function remember() {
    const link = choices.filter((choice) => choice.value).map((choice) => [choice.name, choice.value]);
    if (search.value) link.push(["text", search.value]);
    history.replaceState(null, "", `#${new URLSearchParams(link)}`);
  }

  // A link such as comparison.html#verdict=drifted opens the table filtered.
  function follow() {
    const link = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    for (const choice of choices) {
      const known = [...choice.options].some((option) => option.value === link[choice.name]);
      choice.value = known ? link[choice.name] : "";
    }
    search.value = link.text || "";
    shown = STEP;
    show();
  }

  for (const choice of choices) {
    const values = [...new Set(rows.map((row) => row[place[choice.name]]))].sort();
    for (const value of values) choice.add(new Option(value, value));
  }
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => {
      sorted = { column: columns[index], down: sorted.column === columns[index] && !sorted.down };
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      show();
    });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    shown = STEP;
    show();
    remember();
  });
  more.addEventListener("click", () => {
    shown += STEP;
    show();
  });
  addEventListener("hashchange", follow);
  form.hidden = table.hidden = false;
  follow();
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".comparison").forEach(comparison));
