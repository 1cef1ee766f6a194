// Explorer of attention maps: unpacks what bsbr/map_explorer.py packed, and draws the chosen layer, head and length.
"use strict";

const NARROW = 600; // px; below it the two maps stand one above the other

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

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
  const place = (model * maps.lengths.length + chosen.length) * maps.layers.length + chosen.layer;
  const cells = maps.cells[chosen.length];
  const size = maps.lengths[chosen.length] / cells;
  let at = maps.places[place] + (chosen.head * cells * (cells + 1)) / 2;
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

function arrange(chart) {
  const narrow = chart.clientWidth > 0 && chart.clientWidth < NARROW;
  const update = narrow
    ? { "xaxis.domain": [0, 1], "xaxis2.domain": [0, 1], "yaxis.domain": [0.56, 1], "yaxis2.domain": [0, 0.44], height: 780 }
    : { "xaxis.domain": [0, 0.48], "xaxis2.domain": [0.52, 1], "yaxis.domain": [0, 1], "yaxis2.domain": [0, 1], height: 480 };
  chart.layout.annotations.forEach((_, i) => {
    update[`annotations[${i}].x`] = narrow ? 0.5 : 0.24 + 0.52 * i;
    update[`annotations[${i}].y`] = narrow && i === 1 ? 0.44 : 1;
  });
  const { t, b } = chart.layout.margin;
  update["coloraxis.colorbar.y"] = -75 / (update.height - t - b); // as far below the maps as at first
  return Plotly.relayout(chart, update);
}

async function explore(root) {
  const chart = root.querySelector(".plotly-graph-div");
  const maps = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const note = root.querySelector(".map-note");
  let bytes;
  try {
    bytes = await unpack(maps.data);
  } catch {
    note.textContent = "This browser cannot unpack the other layers, heads and lengths.";
    return;
  }
  const chosen = {
    layer: maps.layers.indexOf(maps.layer),
    head: maps.head,
    length: maps.lengths.indexOf(maps.length),
  };

  function draw() {
    const drawn = maps.models.map((_, model) => picture(maps, bytes, model, chosen));
    const update = { hoverinfo: "all", hovertemplate: "%{text}<extra></extra>" };
    for (const key of Object.keys(drawn[0])) update[key] = drawn.map((one) => one[key]);
    const n = maps.lengths[chosen.length];
    const size = n / maps.cells[chosen.length];
    const cell = size === 1 ? "a cell is one pair of tokens" : `a cell is the largest weight of ${size} × ${size} pairs`;
    note.textContent =
      `Layer ${maps.layers[chosen.layer]}, head ${chosen.head}, ${n.toLocaleString("en")} tokens: ${cell}. Empty cells have no weight.`;
    return Plotly.restyle(chart, update, maps.models.map((_, model) => model));
  }

  function fit() {
    const n = maps.lengths[chosen.length];
    return Plotly.relayout(chart, { "xaxis.range": [-0.5, n - 0.5], "yaxis.range": [n - 0.5, -0.5] });
  }

  const box = document.createElement("div");
  box.className = "map-controls";
  const heads = Array.from({ length: maps.heads }, (_, head) => head);
  chooser(box, "layer", maps.layers, chosen.layer, (i) => ((chosen.layer = i), draw()));
  chooser(box, "head", heads, chosen.head, (i) => ((chosen.head = i), draw()));
  const lengths = maps.lengths.map((n) => n.toLocaleString("en") + " tokens");
  chooser(box, "length", lengths, chosen.length, (i) => ((chosen.length = i), draw(), fit()));
  root.prepend(box);
  await draw();

  let width = 0;
  new ResizeObserver(() => {
    if (chart.clientWidth !== width) {
      width = chart.clientWidth;
      arrange(chart);
    }
  }).observe(chart);
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".map-explorer").forEach(explore));
