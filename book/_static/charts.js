// Charts: drawn when they come into sight, in the page's colours and width, with buttons that a keyboard reaches.
// What a chart is comes from bsbr/show/charts.py, as JSON beside it; plotly.js is loaded when the first one is seen.
"use strict";

window.Charts = (() => {
  const PHONE = 600; // px
  const PAPER = 640; // px, the width of a chart in print
  const CONFIG = { displayModeBar: false, scrollZoom: false, responsive: false, plotlyServerURL: "" };
  // In the book as one file plotly.js is part of the page, and this script has no address.
  const source = document.currentScript ? new URL("plotly/plotly.min.js", document.currentScript.src).href : "";
  const touch = matchMedia("(pointer: coarse)").matches;
  const known = new Map(); // a chart's element and what draws it
  let loading;
  let printing = false;

  function plotly() {
    loading ??= window.Plotly ? Promise.resolve() : new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = source;
      script.onload = () => {
        document.documentElement.dataset.charts = "ready"; // from now on all of them can be drawn at once, as print does
        resolve();
      };
      script.onerror = () => reject(new Error(`${source} cannot be loaded`));
      document.head.append(script);
    });
    return loading;
  }

  // -- The look -----------------------------------------------------------------------------------

  function colours() {
    if (printing) return { text: "#222832", line: "#c8cdd3", surface: "#ffffff" };
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { text: of("--pst-color-text-base"), line: of("--chart-grid"), surface: of("--pst-color-surface") };
  }

  const axesOf = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));

  // A layout as this page shows it at this width.
  function dress(original, width) {
    const layout = structuredClone(original);
    const { text, line, surface } = colours();
    const phone = width < PHONE;
    const clear = "rgba(0,0,0,0)";
    Object.assign(layout, { width, showlegend: false, dragmode: touch ? false : "zoom" });
    Object.assign(layout, { paper_bgcolor: clear, plot_bgcolor: clear });
    layout.font = { ...layout.font, color: text, size: phone ? 11 : 13 };
    layout.margin = { ...layout.margin, t: 12, l: phone ? 8 : 60, r: phone ? 8 : 20 };
    layout.hoverlabel = { bgcolor: surface, bordercolor: line, font: { color: text } };
    for (const name of axesOf(layout)) {
      const axis = layout[name];
      Object.assign(axis, { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line });
      Object.assign(axis, { automargin: true, fixedrange: touch, autotickangles: [0, 90] });
      const along = name[0] === "x" ? width - 90 : (layout.height || 420) - 90;
      if (axis.title?.text) axis.title.text = broken(axis.title.text, along / (0.56 * layout.font.size));
      if (name === "xaxis" && axis.ticktext) thin(axis, along, 0.62 * layout.font.size);
    }
    return layout;
  }

  // Plotly does not break a title that is longer than its axis.
  function broken(title, characters) {
    const lines = [""];
    for (const word of title.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (longer.length <= characters) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines.join("<br>");
  }

  // Of numbers under an axis those for which there is room; each keeps its tick.
  function thin(axis, along, letter) {
    const at = axis.tickvals.map((value) => (axis.type === "log" ? Math.log(value) : value));
    const scale = along / (at.at(-1) - at[0] || 1);
    const half = axis.ticktext.map((text) => ((String(text).replace(/<[^>]*>/g, "").length + 1) * letter) / 2);
    const meet = (i, other) => i < at.length && (at[i] - at[other]) * scale < half[i] + half[other];
    let every = 1; // all numbers, or every second, every third …
    while (every < at.length && at.some((_, i) => i % every === 0 && meet(i + every, i))) every++;
    axis.ticktext = axis.ticktext.map((text, i) => (i % every ? "" : text));
    axis.tickangle = 0;
  }

  // Maps side by side as squares, in as many columns as there is room for.
  function arrange(layout, panels, width) {
    const columns = width < PHONE ? (panels > 2 ? 2 : 1) : Math.min(panels, 4);
    const rows = Math.ceil(panels / columns);
    const [left, right, top, gapX, gapY] = [width < PHONE ? 56 : 64, 12, 30, 28, 34];
    const bottom = 124; // numbers, a title and the scale of colours
    const side = (width - left - right - (columns - 1) * gapX) / columns;
    const [inner, height] = [width - left - right, rows * side + (rows - 1) * gapY];
    const [xTitle, yTitle] = ["token that is read", "token that reads"];
    const count = axesOf(layout).filter((name) => name[0] === "x").length;
    for (let i = 0; i < count; i++) {
      const [row, column, number] = [Math.floor(i / columns), i % columns, i ? i + 1 : ""];
      const [x, y] = [layout[`xaxis${number}`], layout[`yaxis${number}`]];
      if (i >= panels) {
        x.visible = y.visible = false;
        Object.assign(x, { domain: [0, 0.01] });
        Object.assign(y, { domain: [0, 0.01] });
        continue;
      }
      const [begin, down] = [column * (side + gapX), row * (side + gapY)];
      x.domain = [begin / inner, (begin + side) / inner];
      y.domain = [1 - (down + side) / height, 1 - down / height];
      const [lowest, first] = [i + columns >= panels, column === 0];
      Object.assign(x, { automargin: false, showticklabels: lowest, title: { text: lowest ? xTitle : "", standoff: 6 }, nticks: 5 });
      Object.assign(y, { automargin: false, showticklabels: first, title: { text: first ? yTitle : "", standoff: 6 }, nticks: 5 });
      const name = layout.annotations[i];
      if (name) Object.assign(name, { x: (x.domain[0] + x.domain[1]) / 2, y: y.domain[1], font: { size: width < PHONE ? 12 : 14 } });
    }
    layout.margin = { l: left, r: right, t: top, b: bottom };
    layout.height = Math.round(top + height + bottom);
    const bar = layout.coloraxis.colorbar;
    Object.assign(bar, { len: width < PHONE ? 1 : 0.6, y: -72 / height });
  }

  // Names of points that would be printed over each other stay away, the later ones.
  function untangle(element) {
    const kept = [];
    const names = [...element.querySelectorAll(".annotation")];
    names.forEach((name) => (name.style.display = ""));
    for (const name of names) {
      const box = (name.querySelector(".annotation-text-g") || name).getBoundingClientRect();
      const meets = (other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom;
      const free = !kept.some(meets);
      name.style.display = free ? "" : "none";
      if (free) kept.push(box);
    }
  }

  // -- Buttons --------------------------------------------------------------------------------------

  const SYMBOLS = {
    circle: "M5,0A5,5 0 1,1 -5,0A5,5 0 1,1 5,0Z",
    square: "M-4.5,-4.5H4.5V4.5H-4.5Z",
    diamond: "M0,-6L6,0L0,6L-6,0Z",
    "triangle-up": "M0,-6L5.5,4H-5.5Z",
    "triangle-down": "M0,6L5.5,-4H-5.5Z",
    cross: "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    x: "M-5.5,-3.5L-3.5,-5.5L0,-2L3.5,-5.5L5.5,-3.5L2,0L5.5,3.5L3.5,5.5L0,2L-3.5,5.5L-5.5,3.5L-2,0Z",
    star: "M0,-6.5L1.6,-2.2L6.2,-2L2.6,0.9L3.8,5.3L0,2.8L-3.8,5.3L-2.6,0.9L-6.2,-2L-1.6,-2.2Z",
    pentagon: "M0,-6L5.7,-1.9L3.5,4.9H-3.5L-5.7,-1.9Z",
    hourglass: "M-5,-5.5H5L-5,5.5H5Z",
  };
  const DASHES = { solid: "", dot: "2 2", dash: "6 4", longdash: "10 4", dashdot: "6 3 2 3", longdashdot: "10 3 2 3" };
  const HATCHES = { "/": "M-6,6L6,-6M-8,2L0,-6M0,6L8,-2", "\\": "M-6,-6L6,6M0,-6L8,2M-8,-2L0,6", "-": "M-8,-2H8M-8,2H8", "|": "M-3,-6V6M3,-6V6" };
  Object.assign(HATCHES, { x: HATCHES["/"] + HATCHES["\\"], "+": HATCHES["-"] + HATCHES["|"], ".": "M-4,-2h2M2,-2h2M-1,2h2" });

  function swatch(trace) {
    const colour = trace.marker?.color || trace.line?.color;
    if (trace.type === "bar") {
      const hatch = HATCHES[trace.marker.pattern?.shape] || "";
      return `<svg viewBox="-8 -6 16 12" width="16" height="12" aria-hidden="true"><rect x="-8" y="-6" width="16" height="12" fill="${colour}"/><path d="${hatch}" stroke="#fff" stroke-width="1.4" fill="none"/></svg>`;
    }
    const symbol = trace.marker?.symbol || "circle";
    const shape = (trace.mode || "").includes("markers") ? SYMBOLS[symbol.replace("-open", "")] : "";
    const dash = trace.line?.dash || "solid";
    const pattern = DASHES[dash] ?? dash.replaceAll("px", "").replaceAll(",", " ");
    const line = (trace.mode || "").includes("lines") ? `<path d="M-17,0H17" stroke="${colour}" stroke-width="2" stroke-dasharray="${pattern}" fill="none"/>` : "";
    const fill = symbol.endsWith("-open") ? "none" : colour;
    return `<svg viewBox="-18 -7 36 14" width="36" height="14" aria-hidden="true">${line}<path d="${shape}" fill="${fill}" stroke="${colour}"/></svg>`;
  }

  function button(box, words, pressed, act) {
    const element = document.createElement("button");
    element.type = "button";
    element.setAttribute("aria-pressed", String(pressed));
    element.append(words);
    element.addEventListener("click", () => act(element));
    box.append(element);
    return element;
  }

  function controls(figure, chart, state, redraw) {
    const named = chart.data.map((trace, i) => [trace, i]).filter(([trace]) => trace.name && ["bar", "scatter"].includes(trace.type));
    const box = document.createElement("div");
    box.className = "chart-controls";
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "What the chart shows");
    if (named.length > 1) {
      const buttons = named.map(([trace, i]) => {
        const element = button(box, trace.name, state.visible[i], () => {
          state.visible[i] = !state.visible[i];
          tell();
          redraw();
        });
        element.insertAdjacentHTML("afterbegin", swatch(trace));
        return element;
      });
      const hidden = state.visible.filter((seen) => !seen).length;
      const all = hidden ? button(box, "", false, () => {
        const show = state.visible.includes(false);
        state.visible = chart.data.map((trace) => show || trace.visible !== false);
        tell();
        redraw();
      }) : null;
      const tell = () => {
        named.forEach(([, i], at) => buttons[at].setAttribute("aria-pressed", String(state.visible[i])));
        if (!all) return;
        const missing = state.visible.filter((seen) => !seen).length;
        all.textContent = missing ? `Show all ${named.length}` : "Show fewer";
        all.removeAttribute("aria-pressed"); // its name says what it does
      };
      tell();
    }
    if (chart.toggle) {
      const scales = ["log", "linear"].map((kind) => button(box, `${kind} scale`, state.scale === kind, () => {
        state.scale = kind;
        scales.forEach((other) => other.setAttribute("aria-pressed", String(other.textContent === `${kind} scale`)));
        redraw();
      }));
    }
    if (box.children.length) figure.querySelector(".plotly-graph-div").before(box);
  }

  // -- Drawing --------------------------------------------------------------------------------------

  function setUp(figure) {
    const element = figure.querySelector(".plotly-graph-div");
    const chart = JSON.parse(figure.querySelector(".chart-description").textContent);
    const state = { visible: chart.data.map((trace) => trace.visible !== false) };
    state.scale = chart.layout.yaxis?.type === "log" ? "log" : "linear";
    known.set(element, { chart, state, drawn: false, extra: null });
    controls(figure, chart, state, () => draw(element));
    whenSeen(element, () => draw(element));
  }

  function widthOf(element) {
    return printing ? Math.min(PAPER, element.clientWidth || PAPER) : element.clientWidth;
  }

  // Draws at once if plotly.js is here, else as soon as it is.
  function draw(element) {
    if (!window.Plotly) return plotly().then(() => draw(element));
    const entry = known.get(element);
    const width = widthOf(element);
    if (!width) return Promise.resolve(); // in something closed: it is seen again when that opens
    const { chart, state } = entry;
    const layout = dress(chart.layout, width);
    const data = chart.data.map((trace, i) => ({ ...trace, visible: state.visible[i] }));
    const { text } = colours();
    for (const trace of data) {
      if (trace.type === "bar" && trace.error_y) trace.error_y = { ...trace.error_y, color: text };
    }
    const more = chart.data.some((trace, i) => state.visible[i] && trace.visible === false);
    if (chart.whole && more) Object.assign(layout.yaxis, chart.whole);
    if (chart.toggle) {
      layout.yaxis.type = state.scale;
      layout.yaxis.tickmode = state.scale === "log" && layout.yaxis.tickvals ? "array" : "auto";
    }
    if (chart.panels) arrange(layout, chart.panels, width);
    layout.uirevision = state.scale; // what a reader has zoomed to stays
    if (entry.extra) entry.extra(data, layout);
    element.style.height = `${layout.height}px`;
    const first = !entry.drawn;
    Object.assign(entry, { drawn: true, width });
    const done = Plotly.react(element, data, layout, CONFIG);
    if (first) element.on("plotly_afterplot", () => untangle(element));
    return done;
  }

  function whenSeen(element, act) {
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting) || !element.clientWidth) return;
      observer.disconnect();
      act();
    }, { rootMargin: "300px" }).observe(element);
  }

  const drawnOnes = () => [...known].filter(([, entry]) => entry.drawn).map(([element]) => element);

  // Draws every chart, seen or not: for tests, and for whoever makes one document of the book.
  const all = () => plotly().then(() => Promise.all([...known.keys()].map(draw)));

  function start() {
    document.querySelectorAll("figure.chart").forEach(setUp);
    if (!known.size) return;
    new MutationObserver(() => drawnOnes().forEach(draw)).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    const resizes = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const entry = known.get(target);
        if (entry.drawn && !printing && target.clientWidth && target.clientWidth !== entry.width) draw(target);
      }
    });
    for (const element of known.keys()) resizes.observe(element);
    // Paper is white, and shows what nobody has scrolled to. For that, plotly.js has to be here before.
    addEventListener("load", () => (window.requestIdleCallback || setTimeout)(() => plotly()));
    const print = (begins) => () => {
      printing = begins;
      if (window.Plotly) [...known.keys()].forEach(draw);
    };
    addEventListener("beforeprint", print(true));
    addEventListener("afterprint", print(false));
  }

  document.addEventListener("DOMContentLoaded", start);
  return { all, draw, known, whenSeen, layers: {} };
})();
