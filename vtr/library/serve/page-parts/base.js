// What the parts of the page share: small helpers, what is on show, talking to the server.
"use strict";

const $ = id => document.getElementById(id);
const make = (tag, values = {}, ...inside) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(values)) key in node ? node[key] = value : node.setAttribute(key, value);
  node.append(...inside);
  return node;
};
const icon = name => {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(use);
  return drawing;
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
let asked = null;    // parameters of the words that are answered on show; null for an example
let pushed = false;  // whether the open moment has an entry of its own in the history
let leaving = Promise.resolve();  // settled when the closed player's entry is left: going back takes a while

const clock = s => {
  const tenths = Math.round(s * 10), h = Math.floor(tenths / 36000), m = Math.floor(tenths / 600) % 60;
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${rest}` : `${m}:${rest}`;
};
const whole = s => clock(Math.floor(s)).replace(/\.\d$/, "");
// Browsers cut a time to whole microseconds: at a frame's own stamp they may show the one before it.
const entry = hit => hit.start + .001;
const span = hit => hit.end > hit.start ? `${clock(hit.start)} – ${clock(hit.end)}` : "image";
const plural = (n, word) => `${n.toLocaleString("en")} ${n === 1 ? word : word === "copy" ? "copies" : `${word}s`}`;
const size = n => n >= 1 << 30 ? `${(n / (1 << 30)).toFixed(1)} GB` : `${Math.round(n / (1 << 20))} MB`;
const percent = share => share < 1 && share >= .995 ? "> 99 %" : `${Math.round(100 * share)} %`;
const duration = s => s < 120 ? `${Math.round(s)} seconds` : s < 7200 ? `${Math.round(s / 60)} minutes` : `${Math.round(s / 3600)} hours`;

// Folders are shown from the one on that all files seen so far have in common.
let common = null;
function learn(paths) {
  for (const path of paths) {
    const parts = path.split("/").slice(0, -1);
    const alike = common === null ? parts.length : parts.findIndex((part, i) => part !== common[i]);
    common = parts.slice(0, alike < 0 ? parts.length : alike);
  }
}
const short = path => [folder(path), path.split("/").at(-1)].filter(Boolean).join("/");
const folder = path => path.split("/").slice(0, -1).slice(common?.length ?? 0).join("/");

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
const media = (path, values = {}) => {
  const text = String(new URLSearchParams({...(library && {library}), ...values}));
  return text ? `${path}?${text}` : path;
};

// -- menus ------------------------------------------------------------------------------------------------------------

const menus = [...document.querySelectorAll("details.menu")];
const closeMenus = () => menus.filter(menu => menu.open).map(menu => {
  menu.open = false;
  if (menu.contains(document.activeElement)) menu.firstElementChild.focus();
}).length > 0;
addEventListener("click", event => {
  for (const menu of menus) if (menu.open && !event.target.closest("summary") && (!menu.contains(event.target) || event.target.closest("a, button"))) menu.open = false;
});
