// Explorer of attention maps: unpacks what bsbr/show/map_explorer.py packed, and draws the chosen layer, head and length.
// A layer's maps are a script of their own, loaded when the layer is chosen, from the disk too. charts.js draws.
"use strict";

function fetched(maps, layer) {
  const key = maps.keys[layer];
  return new Promise((resolve, reject) => {
    if (Charts.layers[key]) return resolve(Charts.layers[key]);
    const script = document.createElement("script");
    script.src = maps.files[layer];
    script.onload = () => resolve(Charts.layers[key]);
    script.onerror = () => reject(new Error(`${maps.files[layer]} cannot be loaded`));
    document.head.append(script);
  });
}

// A layer's levels, one model after the other; packed are those of the first, and of the others the difference to it.
async function unpack(maps, layer) {
  const packed = Uint8Array.from(atob(await fetched(maps, layer)), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const levels = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = levels.length / maps.models.length;
  for (let at = size; at < levels.length; at++) levels[at] += levels[at % size]; // bytes wrap around
  return levels;
}

const triangle = (cells) => (cells * (cells + 1)) / 2;

function weightInWords(level, maps) {
  if (level === 1) return `less than ${maps.floor}`;
  const weight = maps.floor ** (1 - (level - 1) / (maps.levels - 1));
  return weight.toPrecision(2).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

function tokens(cell, size) {
  return size === 1 ? `token ${cell}` : `tokens ${cell * size}–${(cell + 1) * size - 1}`;
}

// One head's triangle of bytes as what Plotly draws: levels, and a sentence for each cell.
function picture(maps, bytes, model, chosen) {
  const cells = maps.cells[chosen.length];
  const size = maps.lengths[chosen.length] / cells;
  const shorter = maps.cells.slice(0, chosen.length).reduce((sum, other) => sum + triangle(other), 0);
  let at = (model * bytes.length) / maps.models.length + maps.heads * shorter + chosen.head * triangle(cells);
  const z = [];
  const text = [];
  for (let row = 0; row < cells; row++) {
    const levels = new Array(cells).fill(null);
    const words = new Array(cells).fill("");
    const reads = size === 1 ? "reads" : "read";
    for (let column = 0; column <= row; column++, at++) {
      const level = bytes[at];
      levels[column] = level;
      const how = level ? `${size === 1 ? "" : "at most "}${weightInWords(level, maps)}` : "nothing";
      words[column] = `${tokens(row, size)} ${reads} ${tokens(column, size)}: ${how}`;
    }
    z.push(levels);
    text.push(words);
  }
  return { z, text, x0: (size - 1) / 2, dx: size, y0: (size - 1) / 2, dy: size };
}

function chooser(box, label, options, chosen, change) {
  const select = document.createElement("select");
  select.name = label;
  options.forEach((option, i) => select.add(new Option(option, i, false, i === chosen)));
  select.addEventListener("change", () => change(Number(select.value)));
  const element = document.createElement("label");
  element.append(label + " ", select);
  box.append(element);
}

function explore(root) {
  const chart = root.querySelector(".plotly-graph-div");
  const maps = JSON.parse(root.querySelector(".map-data").textContent);
  const note = root.querySelector(".map-note");
  const said = root.querySelector("figcaption");
  const entry = Charts.known.get(chart);
  const chosen = {
    layer: maps.layers.indexOf(maps.layer),
    head: maps.head,
    length: maps.lengths.indexOf(maps.length),
  };
  const unpacked = new Map(); // by layer, as promises: none is loaded twice
  let latest = 0;

  async function draw() {
    const turn = ++latest;
    let bytes;
    if (!unpacked.has(chosen.layer)) unpacked.set(chosen.layer, unpack(maps, chosen.layer));
    try {
      bytes = await unpacked.get(chosen.layer);
    } catch {
      unpacked.delete(chosen.layer);
      note.textContent = "This browser cannot unpack the other layers, heads and lengths.";
      return;
    }
    if (turn !== latest) return; // something else was chosen meanwhile
    const drawn = maps.models.map((_, model) => picture(maps, bytes, model, chosen));
    const n = maps.lengths[chosen.length];
    entry.extra = (data, layout) => {
      drawn.forEach((one, model) => Object.assign(data[model], one, { hoverinfo: "all", hovertemplate: "%{text}<extra></extra>" }));
      layout.uirevision = n; // another length is another square
      for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
        layout[axis].range = axis[0] === "x" ? [-0.5, n - 0.5] : [n - 0.5, -0.5];
      }
    };
    const size = n / maps.cells[chosen.length];
    const cell = size === 1 ? "a cell is one pair of tokens" : `a cell is the largest weight of ${size} × ${size} pairs`;
    note.textContent =
      `Layer ${maps.layers[chosen.layer]}, head ${chosen.head}, ${n.toLocaleString("en")} tokens: ${cell}. Empty cells have no weight.`;
    const share = drawn.map(({ z }, model) => {
      const count = z.flat().filter((level) => level > 0).length;
      return `${maps.models[model]} ${Number(((100 * count) / triangle(z.length)).toPrecision(3))} %`;
    });
    said.textContent =
      `Layer ${maps.layers[chosen.layer]}, head ${chosen.head}, ${n.toLocaleString("en")} tokens. Cells that carry any weight, ` +
      `of those up to the diagonal: ${share.slice(0, -1).join(", ")} and ${share.at(-1)}.`;
    await Charts.draw(chart);
  }

  const box = document.createElement("div");
  box.className = "map-controls";
  const heads = Array.from({ length: maps.heads }, (_, head) => head);
  chooser(box, "layer", maps.layers, chosen.layer, (i) => ((chosen.layer = i), draw()));
  chooser(box, "head", heads, chosen.head, (i) => ((chosen.head = i), draw()));
  const lengths = maps.lengths.map((n) => n.toLocaleString("en") + " tokens");
  chooser(box, "length", lengths, chosen.length, (i) => ((chosen.length = i), draw()));
  root.prepend(box);
  Charts.whenSeen(chart, draw);
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".map-explorer").forEach(explore));
