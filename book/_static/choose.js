// Picks among the numbers that book/choose.py embedded in the page. It computes none and estimates none.
"use strict";

const tokens = (n) => n.toLocaleString("en");

const code = (call) => `from bsbr import ConversionConfig
from bsbr.convert import convert, load_tokenizer

tokenizer = load_tokenizer("my-model")
config = ${call}
model = convert("my-model", config)
prompt = tokenizer("In the beginning", return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(prompt, max_new_tokens=20)[0]))
`;

function cell(row, kind, text, link) {
  const element = document.createElement(kind);
  if (kind === "th") element.scope = row.parentElement.tagName === "THEAD" ? "col" : "row";
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link;
    anchor.textContent = text;
    element.append(anchor);
  } else {
    element.textContent = text;
  }
  row.append(element);
}

// The length itself where the setting was measured there, else the measured ones on both sides.
function nearest(setting, n) {
  const measured = Object.keys(setting.numbers).map(Number).sort((a, b) => a - b);
  if (measured.includes(n)) return [n];
  return [measured.filter((m) => m < n).at(-1), measured.find((m) => m > n)].filter(Boolean);
}

function chooser(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const form = root.querySelector("form");
  const [stop, length, chunkSize, retrieval, rest] = ["stop", "n", "chunk_size", "retrieval", "rest"].map((name) =>
    form.elements.namedItem(name),
  );
  const usual = data.settings[0].fields; // the converter's default, or what is nearest to it
  let wanted = { ...usual };
  let n = data.length;

  const setting = () => data.settings[rest.value];

  // What was measured with this chunk size and retrieval; chosen is what has most in common with the last choice.
  function offer() {
    const found = data.settings.filter(
      ({ fields }) => String(fields.chunk_size) === chunkSize.value && fields.retrieval === retrieval.value,
    );
    const alike = ({ fields }) => Object.keys(fields).filter((name) => String(fields[name]) === String(wanted[name])).length;
    rest.replaceChildren(...found.map((one) => new Option(one.label, data.settings.indexOf(one))));
    rest.disabled = !found.length;
    const best = found.reduce((a, b) => (alike(b) > alike(a) ? b : a), found[0]);
    if (best) rest.value = data.settings.indexOf(best);
  }

  function show() {
    const one = setting();
    const lengths = one ? nearest(one, n) : [n];
    const note = root.querySelector(".map-note");
    if (!one) {
      note.textContent = `No setting with chunk size ${chunkSize.value} and retrieval "${retrieval.value}" was measured.`;
    } else if (lengths[0] === n) {
      note.textContent = "";
    } else {
      const where = lengths.map(tokens).join(" and ");
      note.textContent = `${tokens(n)} tokens: not measured with this setting. Nearest measured: ${where} tokens.`;
    }
    const table = root.querySelector("table");
    const head = table.tHead;
    const body = table.tBodies[0];
    head.replaceChildren();
    body.replaceChildren();
    const first = head.insertRow();
    ["", ...lengths.map((m) => `${tokens(m)} tokens`)].forEach((text) => cell(first, "th", text));
    data.quantities.forEach(({ title, unit }, place) => {
      const row = body.insertRow();
      cell(row, "th", title);
      for (const m of lengths) {
        const number = one && one.numbers[m][place];
        const text = number && number.value !== null ? `${number.shown} ${unit}` : number ? number.shown : "not measured";
        cell(row, "td", text, number && data.pages[number.source]);
      }
    });
    table.hidden = false;
    root.querySelector(".highlight").hidden = !one;
    if (one) root.querySelector(".highlight pre").textContent = code(one.call);
    length.value = n;
    stop.value = Math.max(0, data.lengths.filter((m) => m <= n).length - 1);
    stop.setAttribute("aria-valuetext", `${tokens(n)} tokens`);
  }

  // A link such as choose.html#n=4096&retrieval=states; what it leaves out or gets wrong is as at first.
  function follow() {
    const link = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    const asked = Number(link.n);
    n = Number.isSafeInteger(asked) && asked > 0 ? asked : data.length;
    wanted = { ...usual, ...link };
    for (const choice of [chunkSize, retrieval]) {
      const known = [...choice.options].some((option) => option.value === link[choice.name]);
      choice.value = known ? link[choice.name] : usual[choice.name];
    }
    offer();
    show();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    if (target === stop) n = data.lengths[stop.value];
    if (target === length) {
      if (!length.value || !length.checkValidity()) return; // in the middle of typing
      n = Number(length.value);
    }
    if (target === chunkSize || target === retrieval) offer();
    const fields = setting() ? setting().fields : { chunk_size: chunkSize.value, retrieval: retrieval.value };
    wanted = { ...wanted, ...fields };
    show();
    history.replaceState(null, "", `#${new URLSearchParams({ n, ...fields })}`);
  });
  length.addEventListener("change", () => (length.value = n));

  for (const choice of [chunkSize, retrieval]) {
    choice.append(...data[choice.name].map((value) => new Option(value, value)));
  }
  stop.max = data.lengths.length - 1;
  addEventListener("hashchange", follow);
  form.hidden = false;
  follow();
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".chooser").forEach(chooser));
