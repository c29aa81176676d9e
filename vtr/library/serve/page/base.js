// What the parts of the page share: small helpers, what is on show, talking to the server.
"use strict";

const $ = id => document.getElementById(id);
const make = (tag, values = {}, ...inside) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(values)) key in node ? node[key] = value : node.setAttribute(key, value);
  node.append(...inside);
  return node;
};
const still = matchMedia("(prefers-reduced-motion: reduce)");
const hovers = matchMedia("(hover: hover)");
let info = null;     // what the library holds
let hits = [];       // on show
let playing = -1;    // place of the hit in the player
let listed = [];     // the hits that the player goes through: those on show may be others by now
let clip = null;     // the file searched by
let running = null;  // AbortController of the request under way
let lastFocus = null;
let entered = Promise.resolve();  // after the token of the address was given
let library = "";    // which library the ids on show are of
let shown = null;    // the question in the address that is answered on show
let pushed = false;  // whether the open moment has an entry of its own in the history
let leaving = Promise.resolve();  // settled when the closed player's entry is left: going back takes a while

const clock = s => {
  const tenths = Math.round(s * 10), h = Math.floor(tenths / 36000), m = Math.floor(tenths / 600) % 60;
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${rest}` : `${m}:${rest}`;
};
// Browsers cut a time to whole microseconds: at a frame's own stamp they may show the one before it.
const entry = hit => hit.start + .001;
const span = hit => hit.end > hit.start ? `${clock(hit.start)} – ${clock(hit.end)}` : "image";
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const size = n => n >= 1 << 30 ? `${(n / (1 << 30)).toFixed(1)} GB` : `${Math.round(n / (1 << 20))} MB`;

// -- talking to the server ------------------------------------------------------------------------------------------

class Refusal extends Error { constructor(status, text) { super(text); this.status = status; } }

async function ask(url, options = {}) {
  let answer;
  try { answer = await fetch(url, options); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let text = `The server answered ${answer.status}.`;
  try { text = (await answer.json()).error || text; } catch { /* not ours */ }
  throw new Refusal(answer.status, text);
}
