// Filters the table of claims and shows it page by page. Without this script, and on paper, all of its rows stand there.
"use strict";

const ROWS = 25; // shown at once: each has some links, which are stops for a keyboard

document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.claims-filter");
  const rows = [...document.querySelectorAll(".claims-table tbody tr")];
  const choices = [...form.querySelectorAll("select")];
  const words = form.querySelector("input[name=text]");
  const count = form.querySelector("output");
  const view = form.querySelector("a.claims-view");
  const [back, on] = form.querySelectorAll("button");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  let start = 0;

  // The address of the list as it is filtered: claims.html#document=…&verdict=open.
  function state() {
    const wanted = new URLSearchParams();
    for (const choice of choices) if (choice.value) wanted.set(choice.name, choice.value);
    if (words.value.trim()) wanted.set("text", words.value.trim());
    return `#${wanted}`;
  }

  function show() {
    const typed = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, i) => {
      row.hidden =
        choices.some((choice) => choice.value && row.dataset[choice.name] !== choice.value) ||
        typed.some((word) => !texts[i].includes(word));
    });
    view.href = state();
    turn();
  }

  function turn() {
    const found = rows.filter((row) => !row.hidden);
    start = Math.max(0, Math.min(start, Math.floor((found.length - 1) / ROWS) * ROWS));
    found.forEach((row, i) => row.classList.toggle("elsewhere", i < start || i >= start + ROWS));
    const end = Math.min(start + ROWS, found.length);
    const part = found.length > ROWS ? `${start + 1}–${end} of ` : "";
    count.textContent = found.length === rows.length ? `${part}${rows.length}` : `${part}${found.length}, of ${rows.length} in all`;
    back.disabled = start === 0;
    on.disabled = end >= found.length;
  }

  // An address opens the table filtered, or leads to one claim, which no filter may hide. A filter that names no value
  // of the list, or a heading's address, changes nothing.
  function follow() {
    const hash = location.hash.slice(1);
    const claim = hash.startsWith("claim-") && document.getElementById(hash);
    const wanted = new URLSearchParams(hash);
    const filtered = [...choices, words].some((choice) => wanted.has(choice.name));
    if (claim || filtered || !hash) {
      for (const choice of choices) {
        const value = (!claim && wanted.get(choice.name)) || "";
        choice.value = [...choice.options].some((option) => option.value === value) ? value : "";
      }
      words.value = (!claim && wanted.get("text")) || "";
      start = claim ? Math.floor(rows.indexOf(claim) / ROWS) * ROWS : 0;
    }
    show();
    if (claim) claim.scrollIntoView({ block: "center" });
    else if (filtered) form.scrollIntoView();
  }

  for (const choice of choices) {
    for (const value of new Set(rows.map((row) => row.dataset[choice.name]))) choice.add(new Option(value, value));
  }
  form.addEventListener("input", () => {
    start = 0;
    history.replaceState(null, "", state());
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  back.addEventListener("click", () => ((start -= ROWS), turn()));
  on.addEventListener("click", () => ((start += ROWS), turn()));
  form.hidden = false;
  addEventListener("hashchange", follow);
  follow();
});
