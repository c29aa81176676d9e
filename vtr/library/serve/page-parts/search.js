// A search: asked, waited for, shown.
"use strict";

async function search({like = null, file = null, further = false}) {
  running?.abort();
  const mine = running = new AbortController();
  const retry = () => search({like, file});
  if (!like) setChip(file ? file.name : null);
  const text = $("q").value.trim();
  let slow, ghosts;
  try {
    if (file && info && file.size > info.limits.upload_bytes)
      throw new Refusal(413, `${file.name} has ${size(file.size)}; clips of up to ${size(info.limits.upload_bytes)} can be searched by. Cut out the moment first.`);
    const values = parameters();
    $("line").hidden = false;
    if (!further) ghosts = setTimeout(showGhosts, 120);
    slow = setTimeout(() => {
      say(file ? "Still working on the clip…" : "Still searching…");
      $("cancel").hidden = false;
    }, 2500);
    say(file ? "Sending and reading the clip…" : "Searching…");
    $("grid").setAttribute("aria-busy", "true");
    await entered;
    let url, options = {signal: mine.signal};
    if (file) {
      const body = new FormData();
      values.forEach((value, name) => body.append(name, value));
      body.append("clip", file, file.name);
      url = "api/search/clip";
      options = {...options, method: "POST", body};
    } else if (like) {
      const of = new URLSearchParams(location.search).get("library") || library;
      if (of) values.set("library", of);
      url = `api/segments/${like}/similar?${values}`;
    } else url = `api/search?${ofWords(values, text)}`;
    const answer = await (await ask(url, options)).json();
    if (mine !== running) return;
    asked = like || file ? null : values;
    if (like) setChip(`like ${answer.query}`);
    document.title = `${asked ? "" : "like "}${answer.query} - vtr`;
    $("heading").textContent = `Moments ${asked ? "for" : "like"} ${answer.query}`;
    show(answer, further);
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    failed(error, retry, file);
  } finally {
    clearTimeout(slow); clearTimeout(ghosts);
    if (mine === running) { running = null; $("cancel").hidden = true; $("grid").removeAttribute("aria-busy"); }
  }
}

function say(text) { $("status").textContent = text; }

function setChip(text) {
  $("chip").hidden = !text;
  $("chip").firstElementChild.textContent = text || "";
  if (text) { $("q").value = ""; fields.then.value = ""; showThen(false); }
}

function clearGrid(...nodes) {
  $("state").replaceChildren();
  $("grid").replaceChildren(...nodes);
  $("notes").hidden = $("rest").hidden = $("export").hidden = true;
}

function showGhosts() {
  clearGrid(...Array.from({length: 8}, () =>
    make("li", {className: "card ghost", "aria-hidden": "true"}, make("div", {className: "play"}), make("i"), make("i"))));
}

function show(answer, further) {
  const before = $("grid").querySelectorAll(".play").length;
  hits = answer.hits;
  library = answer.library;
  shown = question();
  curves.clear();
  clearGrid();
  learn(hits.map(hit => hit.path));
  const none = hits.length > 0 && hits.every(hit => hit.weak);
  const notes = answer.notes.filter(note => !hits.length || !note.startsWith("nothing like that"));  // the dividers say it
  $("notes").hidden = !notes.length;
  $("notes").textContent = notes.join(" \u00b7 ");
  $("line").hidden = false;
  if (!hits.length) return nothing();
  const videos = new Set(hits.map(hit => hit.video)).size;
  say(`${plural(hits.length, "moment")}${videos < hits.length ? ` of ${plural(videos, "video")}` : ""} in ${answer.milliseconds < 1000 ? Math.max(1, Math.round(answer.milliseconds)) + " ms" : (answer.milliseconds / 1000).toFixed(1) + " s"}`);
  const groups = grouped(hits);
  const first = groups.findIndex(group => hits[group[0]].weak);
  const cards = groups.map(group => card(group, hits));
  if (none) cards.unshift(allWeak(Math.max(...hits.map(hit => hit.confidence))));
  else if (first >= 0) cards.splice(first, 0, divider("Weak", "Other words that have nothing to do with this library find moments as good as these."));
  $("grid").replaceChildren(...cards);
  offerLists();
  $("rest").hidden = groups.length < Number(given("k")) || given("k") === "100";
  if (!further) scrollTo({top: 0});
  else $("grid").querySelectorAll(".play")[before]?.focus();
  openAddressed();
}

function allWeak(best) {
  const why = `${percent(1 - best)} of unrelated queries find a moment as good as the best of these.`;
  if (best >= .5) return divider("Only weak hits", why);
  return divider("Nothing like that here", `${why} ${info && knows() || "Try other words."}`);
}

// Places of the hits that are one card: a video's moments together, where they were asked for together.
function grouped(hits) {
  const groups = [];
  hits.forEach((hit, place) => hit.moment > 1 && groups.length && !given("then") && given("group") !== "all" && hits[groups.at(-1)[0]].video === hit.video
    ? groups.at(-1).push(place) : groups.push([place]));
  return groups;
}
const divider = (title, text) => make("li", {className: "divide"}, make("h2", {textContent: title}), make("p", {textContent: text}));

const lists = {csv: "table", json: "for programs", edl: "CMX 3600 edit list", fcpxml: "Final Cut, Resolve, Premiere", srt: "subtitles"};
function offerLists() {
  $("export").hidden = !asked;
  if (!asked) return;
  $("export").querySelector(".list").replaceChildren(...Object.entries(lists).map(([format, about]) => {
    const link = make("a", {href: `api/export?${asked}&format=${format}`, download: `hits.${format}`, textContent: format.toUpperCase()}, make("small", {textContent: about}));
    link.addEventListener("click", event => { event.preventDefault(); take(link.href, `hits.${format}`, say); });
    return link;
  }));
}

// A file that the server makes: fetched, so that what goes wrong is said here and not on a page of its own.
async function take(url, name, tell) {
  tell(`Making ${name}…`);
  try {
    const answer = await ask(url);
    const given = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") || "")?.[1] ?? name;
    const link = make("a", {href: URL.createObjectURL(await answer.blob()), download: given});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    tell(`${given} is saved`);
  } catch (error) { tell(error.message); }
}

async function more(hit) {
  $("player").close();
  await leaving;
  clip = null;
  fields.then.value = "";
  showThen(false);
  history.pushState(null, "", address(String(hit.segment)));
  search({like: String(hit.segment)});
}
