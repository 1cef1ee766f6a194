// Finds sections of the book for the words in the address, ?q=…, the likeliest first, each with a line of its text.
// PACKED comes from search_data.js: of each section [address, page, section, text].
"use strict";

const NOT_TELLING = new Set("a an and are as at be by do does for how i in is it me my of on or the this to was what when which with you".split(" "));
const ALIKE = { license: "licence", licensing: "licence", color: "colour", setup: "install", citation: "cite", citing: "cite", reference: "cite" };
const SHOWN = 50;

const parts = (text) => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
// What stays of a word when its ending changes: "measured" and "measuring" are "measur".
const stem = (word) => (word.length > 4 ? word.replace(/(ations?|ings?|ed|es|e|s)$/, "") : word);

function asked(query) {
  const all = parts(query).map((word) => ALIKE[word] || word);
  const telling = all.filter((word) => !NOT_TELLING.has(word));
  return [...new Set((telling.length ? telling : all).map(stem))];
}

// How well a text fits a word: whole words count more than beginnings, and the tenth time hardly more than the fifth.
function fit(words, word) {
  let found = 0;
  for (const one of words) if (one.startsWith(word)) found += stem(one) === word ? 1 : 0.5;
  return found / (found + 2);
}

function search(query, sections) {
  const words = asked(query);
  if (!words.length) return [];
  const known = sections.map(([address, page, title, text]) => ({ address, page, title, text, in: [title, page, text].map(parts) }));
  const rarity = words.map((word) => {
    const having = known.filter((one) => one.in.some((list) => list.some((w) => w.startsWith(word)))).length;
    return Math.log(1 + known.length / (1 + having));
  });
  const phrase = query.toLowerCase().trim();
  const found = [];
  for (const one of known) {
    const [title, page, text] = one.in;
    const fits = words.map((word, i) => rarity[i] * (6 * fit(title, word) + 2 * fit(page, word) + 2 * fit(text, word)));
    const had = fits.filter(Boolean).length;
    if (!had) continue;
    const named = one.title.toLowerCase();
    const said = named === phrase ? 20 : named.includes(phrase) ? 10 : one.text.toLowerCase().includes(phrase) ? 2 : 0;
    found.push({ ...one, had, score: fits.reduce((a, b) => a + b, 0) + said });
  }
  const most = Math.max(0, ...found.map((one) => one.had));
  return found.filter((one) => one.had === most).sort((a, b) => b.score - a.score).map((one) => ({ ...one, words }));
}

// A text in which the words that were asked for stand out.
function marked(element, text, words) {
  for (const piece of text.split(new RegExp(`((?<![\\p{L}\\p{N}_])(?:${words.join("|")})[\\p{L}\\p{N}_]*)`, "giu"))) {
    const found = words.some((word) => piece.toLowerCase().startsWith(word));
    const part = document.createElement(found ? "mark" : "span");
    part.textContent = piece;
    element.append(part);
  }
}

// Some words around the first that was asked for.
function line({ text, words }) {
  const at = words.map((word) => text.toLowerCase().search(new RegExp(`(?<![\\p{L}\\p{N}_])${word}`, "u"))).filter((i) => i >= 0);
  const start = Math.max(0, Math.min(...(at.length ? at : [0])) - 60);
  const from = start ? text.indexOf(" ", start) + 1 : 0;
  const until = text.length > from + 220 ? text.lastIndexOf(" ", from + 220) : text.length;
  const element = document.createElement("p");
  marked(element, `${from ? "… " : ""}${text.slice(from, until)}${until < text.length ? " …" : ""}`, words);
  return element;
}

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

async function show(query) {
  const found = search(query, query ? await unpack(PACKED) : []);
  document.getElementById("search-count").textContent = !query
    ? ""
    : found.length
      ? `${found.length} section${found.length > 1 ? "s" : ""} for “${query}”${found.length > SHOWN ? `, of which the first ${SHOWN}` : ""}`
      : `Nothing for “${query}”. Try fewer or other words.`;
  const root = document.documentElement.dataset.content_root || "./";
  document.getElementById("search-results").replaceChildren(
    ...found.slice(0, SHOWN).map((one) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = root + one.address;
      marked(link, one.title === one.page ? one.page : `${one.page}: ${one.title}`, one.words);
      item.append(link, line(one));
      return item;
    }),
  );
}

const query = new URLSearchParams(location.search).get("q") || "";
for (const field of document.querySelectorAll("form.bd-search input[name=q]")) field.value = query;
show(query);
