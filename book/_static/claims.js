// Filters the table of claims. Without this script all of its rows stand there.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.claims-filter");
  const rows = [...document.querySelectorAll(".claims-table tbody tr")];
  const choices = [...form.querySelectorAll("select")];
  const count = form.querySelector("output");

  function show() {
    for (const row of rows) {
      row.hidden = choices.some((choice) => choice.value && row.dataset[choice.name] !== choice.value);
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  }

  // A link such as claims.html#verdict=contradicted opens the table filtered.
  function follow() {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const choice = choices.find((choice) => choice.name === name);
      if (!choice) continue;
      choice.value = value;
      form.scrollIntoView();
    }
    show();
  }

  for (const choice of choices) {
    for (const value of new Set(rows.map((row) => row.dataset[choice.name]))) choice.add(new Option(value, value));
    choice.addEventListener("change", show);
  }
  form.hidden = false;
  addEventListener("hashchange", follow);
  follow();
});
