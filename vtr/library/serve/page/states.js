// What stands where the hits are not: the first view, nothing found, an error, the token.
"use strict";

function state(kind, title, text, ...actions) {
  hits = [];
  $("grid").replaceChildren();
  const inside = [make(kind === "welcome" ? "h1" : "h2", {textContent: title})];
  if (text) inside.push(make("p", {textContent: text}));
  if (actions.length) inside.push(make("div", {className: "row"}, ...actions));
  $("state").replaceChildren(make("div", {className: `state ${kind}`, role: kind === "bad" ? "alert" : "status"}, ...inside));
}
const action = (text, run, main) => make("button", {type: "button", className: main ? "act main" : "act", textContent: text, onclick: run});

function welcome() {
  document.title = "vtr";
  $("line").hidden = true;
  setChip(null);
  if (!info) return state("welcome", "Loading…", "");
  if (!info.segments) return state("welcome", "This library is empty", `Add videos to it: vtr index add ${info.name} FOLDER`);
  state("welcome", "Describe a moment, and see it",
    `${plural(info.videos, "video")}, ${duration(info.seconds)}, ${plural(info.segments, "moment")} to search. Two wishes at once: a dog + snow. Or search by a clip or an image: drop it anywhere.`);
}
const duration = s => s < 120 ? `${Math.round(s)} seconds` : s < 7200 ? `${Math.round(s / 60)} minutes` : `${Math.round(s / 3600)} hours`;

function nothing() {
  $("line").hidden = $("chip").hidden;
  say("");
  const actions = labelFilters() ? [action("Clear filters", clearFilters, true)] : [];
  if (info && !info.segments) return state("empty", "This library is empty", `Add videos to it: vtr index add ${info.name} FOLDER`);
  state("empty", "Nothing found", actions.length ? "No moment passes the filters." : "There is nothing else in this library to compare with.", ...actions);
}

function failed(error, retry) {
  if (error.status === 401) return locked();
  $("line").hidden = $("chip").hidden;
  say("");
  const wrong = error.status >= 400 && error.status < 500 && error.status !== 429;
  const titles = {0: "No connection", 404: "Not there", 409: "The file has changed", 410: "The file is gone", 413: "Too large", 422: "This cannot be read", 429: "Very busy"};
  const filtered = wrong && error.status === 400 && labelFilters();
  const change = () => { $("filters").open = true; fields.where.focus(); };
  state("bad", titles[error.status] || (wrong ? "That question does not work" : "The search failed"), error.message,
    ...(filtered ? [action("Clear filters", clearFilters, true), action("Change filters", change)] : [action("Try again", retry, true)]));
}

function locked() {
  $("line").hidden = true;
  const input = make("input", {type: "password", placeholder: "token", "aria-label": "Token", autocomplete: "current-password"});
  const form = make("form", {className: "row"}, input, make("button", {className: "act main", textContent: "Open"}));
  form.addEventListener("submit", async event => {
    event.preventDefault();
    try { await login(input.value); restore(); await begin(); }
    catch (error) { failedLogin.textContent = error.message; input.select(); }
  });
  const failedLogin = make("p", {role: "alert"});
  state("locked", "This library needs a token", "The server printed it when it started.");
  $("state").firstChild.append(form, failedLogin);
  input.focus();
}

const login = token => ask("api/login", {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify({token})});
