// Tables that scroll sideways say so and can be reached by keyboard; those that fit are no stop. What is folded opens
// for an address that leads into it, and on paper.
"use strict";

const HINT = "Scroll sideways for more columns";

function watch(box) {
  const hint = document.createElement("p");
  hint.className = "scroll-hint";
  hint.textContent = HINT;
  hint.hidden = true;
  box.after(hint);
  const named = { role: box.getAttribute("role"), tabindex: "0", "aria-label": box.getAttribute("aria-label") };
  function look() {
    if (!box.clientWidth) return; // folded away
    const wide = box.scrollWidth > box.clientWidth + 1;
    const long = box.scrollHeight > box.clientHeight + 1;
    hint.hidden = !wide;
    box.classList.toggle("scrolls", wide);
    box.classList.toggle("at-end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 1);
    for (const [name, value] of Object.entries(named)) {
      if (wide || long) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  }
  box.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(box);
  for (const table of box.querySelectorAll("table")) new ResizeObserver(look).observe(table);
  look();
}

// A formula wider than the page scrolls too.
function reachFormulas() {
  for (const formula of document.querySelectorAll(".katex-display")) {
    const wide = formula.scrollWidth > formula.clientWidth;
    const named = { role: "group", tabindex: "0", "aria-label": "Formula" };
    for (const [name, value] of Object.entries(named)) {
      if (wide) formula.setAttribute(name, value);
      else formula.removeAttribute(name);
    }
  }
}

function reveal() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const folds = [...target.querySelectorAll(":scope > details.fold")].slice(0, 1);
  for (let at = target; at; at = at.parentElement) if (at.matches("details")) folds.push(at);
  if (folds.every((one) => one.open)) return;
  for (const one of folds) one.open = true;
  target.scrollIntoView();
}

for (const box of document.querySelectorAll(".table-box[aria-label]")) watch(box);
// A chart that was folded away has to learn its width.
document.addEventListener("toggle", (event) => event.target.open && dispatchEvent(new Event("resize")), true);
for (const when of ["load", "resize"]) addEventListener(when, reachFormulas);
addEventListener("hashchange", reveal);
const root = document.documentElement;
addEventListener("beforeprint", () => {
  root.dataset.before = root.dataset.theme;
  root.dataset.theme = "light"; // paper is white, and nothing colours it
  for (const one of document.querySelectorAll("main details:not([open])")) {
    one.open = true;
    one.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  root.dataset.theme = root.dataset.before;
  for (const one of document.querySelectorAll("details[data-printed]")) {
    one.open = false;
    delete one.dataset.printed;
  }
});
reveal();
