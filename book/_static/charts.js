// Plotly charts follow the page: its colours in light and dark mode, its width on a phone.
"use strict";

const PHONE = 600; // px; below it the legend goes under the chart
const LEGEND_PLACE = ["orientation", "x", "xanchor", "y", "yanchor"];

function pageColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axesOf(chart) {
  return Object.keys(chart._fullLayout).filter((key) => /^[xy]axis\d*$/.test(key));
}

function themeUpdate(chart) {
  const text = pageColour("--pst-color-text-base");
  const line = pageColour("--chart-grid");
  const surface = pageColour("--pst-color-surface");
  const update = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    "font.color": text,
    "legend.bgcolor": "rgba(0,0,0,0)",
    "hoverlabel.bgcolor": surface,
    "hoverlabel.bordercolor": line,
    "hoverlabel.font.color": text,
    "modebar.bgcolor": "rgba(0,0,0,0)",
    "modebar.color": pageColour("--pst-color-text-muted"),
    "modebar.activecolor": text,
  };
  for (const axis of axesOf(chart)) {
    update[axis + ".gridcolor"] = line;
    update[axis + ".linecolor"] = line;
    update[axis + ".zerolinecolor"] = line;
    update[axis + ".tickcolor"] = line;
  }
  (chart.layout.updatemenus || []).forEach((_, i) => {
    update[`updatemenus[${i}].bgcolor`] = surface;
    update[`updatemenus[${i}].bordercolor`] = line;
    update[`updatemenus[${i}].font.color`] = text;
  });
  return update;
}

// Plotly does not break a title that is wider than its chart.
function broken(title, characters) {
  const lines = [""];
  for (const word of title.split(" ")) {
    const longer = `${lines[lines.length - 1]} ${word}`.trim();
    if (longer.length <= characters) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.join("<br>");
}

function widthUpdate(chart) {
  const original = chart.originalLayout;
  const update = { autosize: true, width: null };
  if (chart.clientWidth < PHONE) {
    update["legend.orientation"] = "h";
    update["legend.x"] = 0;
    update["legend.xanchor"] = "left";
    update["legend.y"] = -0.25;
    update["legend.yanchor"] = "top";
    update["margin.l"] = 8;
    update["margin.r"] = 8;
    update["font.size"] = 11;
    if (original.title) update["title.text"] = broken(original.title, chart.layout.updatemenus ? 28 : 44);
  } else {
    for (const key of LEGEND_PLACE) update["legend." + key] = original.legend[key] ?? null;
    update["margin.l"] = original.margin.l;
    update["margin.r"] = original.margin.r;
    update["font.size"] = original.fontSize;
    if (original.title) update["title.text"] = original.title;
  }
  for (const axis of axesOf(chart)) update[axis + ".automargin"] = true;
  return update;
}

function adapt(chart) {
  return Plotly.relayout(chart, { ...widthUpdate(chart), ...themeUpdate(chart) });
}

function remember(chart) {
  const { legend, margin, font, title } = chart.layout;
  chart.originalLayout = JSON.parse(
    JSON.stringify({
      legend: legend || {},
      margin: { l: margin?.l ?? 70, r: margin?.r ?? 20 },
      fontSize: font?.size ?? 13,
      title: title?.text ?? "",
    }),
  );
}

document.addEventListener("DOMContentLoaded", () => {
  const charts = [...document.querySelectorAll(".plotly-graph-div")].filter((div) => div._fullLayout);
  charts.forEach(remember);
  charts.forEach(adapt);

  new MutationObserver(() => charts.forEach(adapt)).observe(document.documentElement, {
    attributes: true,
    attributeFilter: ["data-theme"],
  });
  // A chart in a closed dropdown or tab has no width until it is opened; a turned phone changes it.
  const seen = new Map();
  const resizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const width = target.clientWidth;
      if (width > 0 && seen.get(target) !== width) {
        seen.set(target, width);
        adapt(target);
      }
    }
  });
  charts.forEach((chart) => resizes.observe(chart));
});
