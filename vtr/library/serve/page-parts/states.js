// What stands where the hits are not: the first view, nothing found, an error, the token.
"use strict";

let recent = [];  // videos of the first view, as the player takes them

function state(kind, title, text, ...actions) {
  hits = [];
  clearGrid();
  const inside = [make("h2", {textContent: title})];
  if (text) inside.push(make("p", {textContent: text}));
  if (actions.length) inside.push(make("div", {className: "row"}, ...actions));
  $("state").replaceChildren(make("div", {className: `state ${kind}`, role: kind === "bad" ? "alert" : "status"}, ...inside));
}
const action = (text, run, main) => make("button", {type: "button", className: main ? "act main" : "act", textContent: text, onclick: run});
const empty = () => state("empty", "This library is empty", `Add videos to it: vtr index add ${info.name} FOLDER`);

// -- the first view ---------------------------------------------------------------------------------------------------

function welcome() {
  document.title = "vtr";
  $("heading").textContent = "Search videos";
  $("line").hidden = true;
  setChip(null);
  if (!info) return state("welcome", "Loading…", "");
  if (!info.segments) return empty();
  state("welcome", "Describe a moment, and see it", `${plural(info.videos, "video")}, ${duration(info.seconds)}. Or search by a clip or a picture${hovers.matches ? ": drop it anywhere" : ""}.`);
  const box = $("state").firstChild;
  if (knows()) box.append(make("p", {className: "model", textContent: knows()}));
  const examples = make("ul", {className: "examples", "aria-label": "Examples"});
  const videos = make("section", {className: "recent", "aria-label": "Newest videos"});
  box.append(examples);
  $("state").append(videos);
  offerExamples(examples).catch(() => {});  // nothing is lost without them
  showRecent(videos).catch(error => videos.append(make("p", {className: "wrong", textContent: error.message})));
}
const knows = () => info.knows ? `The model “${info.model}” knows ${info.knows}: what it finds for other words means little.`
  : info.trained === false ? `The model “${info.model}” is not trained: what it finds is chance.` : "";

async function offerExamples(list) {
  const {examples} = await (await ask("api/examples?limit=5")).json();
  list.append(...examples.map(({q, by, origin}) => make("li", {}, make("button", {type: "button", className: "chip", textContent: origin === "subtitle" ? `“${q}”` : q,
    title: origin === "subtitle" ? "said in a video of this library" : "a caption of this library", onclick: () => {
      $("q").value = q;
      fields.by.value = by === "words" && info.words ? by : "";
      submit();
    }}))));
}

const PAGE = 12;  // videos at a time
async function showRecent(section) {
  const tiles = make("ol", {className: "grid tiles"}), rest = action("More videos", () => load().then(first => first?.focus(), error => say(error.message)));
  const where = condition();
  const own = [];
  async function load() {
    const values = new URLSearchParams({limit: PAGE, first: own.length});
    if (where) values.set("where", where);
    const answer = await (await ask(`api/videos?${values}`)).json();
    if (!section.isConnected) return null;
    shown = question();
    library = answer.library;
    learn(answer.videos.map(video => video.path));
    const from = own.length;
    own.push(...answer.videos.map(video => ({...video, start: 0, end: video.duration, whole: true, copies: [], said: [], steps: [], by: []})));
    recent = own;
    const made = own.slice(from).map((video, i) => tile(video, from + i, own));
    tiles.append(...made);
    rest.hidden = !made.length || own.length >= answer.total;
    if (!own.length) tiles.replaceWith(make("p", {textContent: "No video passes the filters."}));
    return made[0]?.querySelector("button");
  }
  await load();
  section.replaceChildren(make("h2", {textContent: where ? "Newest videos that pass the filters" : "Newest videos"}), own.length ? tiles : make("p", {textContent: "None."}), make("p", {className: "rest"}, rest));
}

// -- nothing, errors --------------------------------------------------------------------------------------------------

function nothing() {
  $("line").hidden = $("chip").hidden && $("notes").hidden;
  say("");
  const actions = labelFilters() ? [action("Clear filters", clearFilters, true)] : [];
  if (info && !info.segments) return empty();
  const notes = $("notes").hidden ? "" : $("notes").textContent;
  state("empty", "Nothing found", actions.length ? `No moment passes the filters.${notes && ` ${notes}.`}` : notes || "There is nothing else in this library to compare with.", ...actions);
}

function failed(error, retry, file) {
  if (error.status === 401) return locked();
  $("line").hidden = $("chip").hidden;
  say("");
  const filtered = error.status === 400 && labelFilters();
  const at = /^where: /.test(error.message) ? error.message.slice(7) : "";
  const titles = {0: "No connection", 400: at ? "The condition has an error" : "That cannot be searched for", 404: "Not there", 409: "The file has changed",
    410: "The file is gone", 413: "Too large", 422: file ? `${file.name} cannot be read` : "This cannot be read", 429: "Very busy"};
  const change = () => { $("filters").open = true; fields.where.focus(); };
  state("bad", titles[error.status] || "The search failed", error.message.replace(/^upload: /, ""),
    ...(filtered ? [action("Clear filters", clearFilters, true), action("Change filters", change)] : [action("Try again", retry, true)]));
  if (at) {
    $("filters").open = true;
    $("where-error").textContent = at;
    $("where-error").hidden = false;
    fields.where.setAttribute("aria-invalid", "true");
  }
  if (error.status === 0 && !file) waitForServer($("state").firstChild, retry);
}

// Asks again by itself once the server answers.
function waitForServer(box, retry) {
  const again = async () => {
    if (!box.isConnected) return;
    try { await ask("health"); } catch (error) { if (!error.status) return setTimeout(again, 3000); }
    if (box.isConnected) retry();
  };
  setTimeout(again, 3000);
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
