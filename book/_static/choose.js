// Picks among the numbers that book/choose.py embedded in the page. It computes none and estimates none.
"use strict";

const tokens = (n) => `${n.toLocaleString("en")} tokens`;

const code = (call) => `from bsbr import ConversionConfig
from bsbr.conversion import convert, load_tokenizer

tokenizer = load_tokenizer("my-model")
config = ${call}
model = convert("my-model", config)
prompt = tokenizer("In the beginning", return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(prompt, max_new_tokens=20)[0]))
`;

function add(parent, kind, text = "", attributes = {}) {
  const element = parent.appendChild(document.createElement(kind));
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// A length as typed, with or without commas, or nothing if it is none.
function lengthOf(text) {
  const plain = text.trim().replace(/(\d),(?=\d{3}(\D|$))/g, "$1");
  const n = Number(plain);
  return /^\d+$/.test(plain) && n >= 1 && Number.isSafeInteger(n) ? n : undefined;
}

// Of the measured lengths the one itself, else those on both sides.
function nearest(measured, n) {
  if (measured.includes(n)) return [n];
  const sorted = [...measured].sort((a, b) => a - b);
  return [sorted.filter((m) => m < n).at(-1), sorted.find((m) => m > n)].filter(Boolean);
}

function chooser(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const form = root.querySelector("form");
  const [stop, length, setting] = ["stop", "n", "setting"].map((name) => form.elements.namedItem(name));
  const note = root.querySelector(".map-note");
  const usual = data.settings[0].fields; // the converter's default, or what is nearest to it
  let n = data.length;

  const chosen = () => data.settings[setting.value];
  const number = ({ shown, value, unit, over }) => `${value === null ? shown : `${shown} ${unit}`.trim()}${over ? `, over ${over}` : ""}`;

  // The number at a length; where there is none, those of the nearest lengths at which this setting has one.
  function fill(cell, one, place, m) {
    const lengths = Object.keys(one.numbers).map(Number).filter((at) => one.numbers[at][place]);
    const at = nearest(lengths, m);
    if (at[0] !== m) cell.append(at.length ? "not measured; " : "not measured with this setting");
    at.forEach((found, i) => {
      const it = { ...one.numbers[found][place], unit: data.quantities[place].unit };
      if (found !== m) cell.append(`${i ? "; " : ""}after ${tokens(found)} `);
      add(cell, "a", number(it), { href: data.pages[it.source] });
    });
  }

  function show(said = "") {
    const one = chosen();
    const lengths = nearest(Object.keys(one.numbers).map(Number), n);
    const notes = [said];
    if (lengths[0] !== n) notes.push(`${tokens(n)}: not measured with this setting. Nearest measured: ${lengths.map((m) => m.toLocaleString("en")).join(" and ")} tokens.`);
    note.textContent = notes.filter(Boolean).join(" ");
    const table = root.querySelector("table");
    const head = table.tHead;
    const body = table.tBodies[0];
    head.replaceChildren();
    body.replaceChildren();
    const first = add(head, "tr");
    ["what", ...lengths.map(tokens)].forEach((text) => add(first, "th", text, { scope: "col" }));
    data.quantities.forEach(({ title }, place) => {
      const row = add(body, "tr");
      add(row, "th", title, { scope: "row" });
      for (const m of lengths) fill(add(row, "td"), one, place, m);
    });
    table.hidden = root.querySelector(".highlight").hidden = false;
    root.querySelector(".highlight pre").textContent = code(one.call);
    stop.value = Math.max(0, data.lengths.filter((m) => m <= n).length - 1);
    stop.setAttribute("aria-valuetext", tokens(n));
    length.removeAttribute("aria-invalid");
  }

  const refused = (typed) =>
    `${typed.trim() ? `“${typed.trim()}” is not` : "A length is"} a whole number of tokens from 1 on. Still shown: ${tokens(n)}.`;

  // A link such as choose.html#n=4096&retrieval=states. What it leaves out is as at first; what was not measured is said.
  function follow() {
    const link = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    const said = [];
    n = data.length;
    if (link.n !== undefined) {
      const asked = lengthOf(link.n);
      if (asked) n = asked;
      else said.push(refused(link.n));
    }
    const named = Object.keys(usual).concat("top_k", "block_size", "compression_factor").filter((name) => name in link);
    const same = ({ fields }, name) => String(fields[name]) === link[name];
    const alike = (one) =>
      100 * named.filter((name) => same(one, name)).length +
      Object.keys(usual).filter((name) => !(name in link) && one.fields[name] === usual[name]).length;
    const best = data.settings.reduce((a, b) => (alike(b) > alike(a) ? b : a));
    const missed = [...new Set(named)].filter((name) => !same(best, name));
    if (missed.length) {
      const asked = missed.map((name) => `${name.replaceAll("_", " ")} ${link[name]}`).join(", ");
      said.push(`The address asks for ${asked}, which was not measured so. Shown is what is nearest to it.`);
    }
    setting.value = data.settings.indexOf(best);
    length.value = n;
    show(said.join(" "));
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    if (target === length) {
      const typed = lengthOf(length.value);
      if (!typed) {
        note.textContent = refused(length.value);
        length.setAttribute("aria-invalid", "true");
        return;
      }
      n = typed;
    }
    if (target === stop) length.value = n = data.lengths[stop.value];
    show();
    history.replaceState(null, "", `#${new URLSearchParams({ n, ...chosen().fields })}`);
  });

  for (const [retrieval, words] of Object.entries(data.retrievals)) {
    const group = add(setting, "optgroup", "", { label: words });
    data.settings.forEach((one, i) => one.fields.retrieval === retrieval && add(group, "option", one.label, { value: i }));
  }
  stop.max = data.lengths.length - 1;
  addEventListener("hashchange", follow);
  form.hidden = false;
  follow();
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".chooser").forEach(chooser));
