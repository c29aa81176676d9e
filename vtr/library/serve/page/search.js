// A search, and its hits as cards.
"use strict";

async function search({like = null, file = null}) {
  running?.abort();
  const mine = running = new AbortController();
  const retry = () => search({like, file});
  if (!like) setChip(file ? file.name : null);
  const text = $("q").value.trim();
  let slow, ghosts;
  try {
    if (file && info && file.size > info.limits.upload_bytes)
      throw new Refusal(413, `${file.name} has ${size(file.size)}; clips of up to ${size(info.limits.upload_bytes)} can be searched by. Cut out the moment first.`);
    const where = condition();
    $("line").hidden = false;
    ghosts = setTimeout(showGhosts, 120);
    slow = setTimeout(() => {
      say(file ? "Still working on the clip…" : "Still searching…");
      $("cancel").hidden = false;
    }, 2500);
    say(file ? "Sending and reading the clip…" : "Searching…");
    const values = new URLSearchParams({k: fields.k.value});
    if (where) values.set("where", where);
    if (fields.group.value === "all") values.set("all_moments", "true");
    else if (fields.group.value !== "best") values.set("moments", fields.group.value);
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
    } else {
      for (const part of texts(text)) values.append("q", part);
      for (const part of texts(fields.minus.value)) values.append("minus", part);
      if (fields.rerank.value !== "0") values.set("rerank", fields.rerank.value);
      url = `api/search?${values}`;
    }
    const answer = await (await ask(url, options)).json();
    if (mine !== running) return;
    if (like) setChip(`like ${answer.query}`);
    document.title = `${like || file ? "like " : ""}${answer.query} - vtr`;
    show(answer);
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    failed(error, retry);
  } finally {
    clearTimeout(slow); clearTimeout(ghosts);
    if (mine === running) { running = null; $("cancel").hidden = true; }
  }
}

function say(text) { $("status").textContent = text; }

function setChip(text) {
  $("chip").hidden = !text;
  $("chip").firstElementChild.textContent = text || "";
  if (text) $("q").value = "";
}

function showGhosts() {
  $("state").replaceChildren();
  $("grid").replaceChildren(...Array.from({length: 8}, () =>
    make("li", {className: "card ghost", "aria-hidden": "true"}, make("div", {className: "play"}), make("i"), make("i"))));
}

function show(answer) {
  hits = answer.hits;
  library = answer.library;
  shown = question();
  $("state").replaceChildren();
  $("notes").hidden = !answer.notes.length;
  $("notes").textContent = answer.notes.join(" \u00b7 ");
  $("line").hidden = false;
  if (!hits.length) return nothing();
  const videos = new Set(hits.map(hit => hit.video)).size;
  say(`${plural(hits.length, "moment")}${videos < hits.length ? ` of ${plural(videos, "video")}` : ""} in ${answer.milliseconds < 1000 ? Math.max(1, Math.round(answer.milliseconds)) + " ms" : (answer.milliseconds / 1000).toFixed(1) + " s"}`);
  $("grid").replaceChildren(...hits.map(card));
  scrollTo({top: 0});
  openAddressed();
}

const rated = (hit, digits) => hit.score < 0 && !hit.match ? "<0" : hit.match.toFixed(digits);
const measures = {similarity: "similarity to the words", likeness: "likeness to the example", mixed: "similarity and likeness", combined: "careful ranking"};
const copiesOf = hit => hit.copies.length ? `${plural(hit.copies.length + 1, "copy").replace("copys", "copies")} of this file` : "";
const wordsOf = hit => hit.metadata.caption ?? hit.metadata.title;

function card(hit, place, own) {
  const picture = make("img", {alt: "", loading: "lazy", decoding: "async", src: media(`api/segments/${hit.segment}/thumbnail.jpg`)});
  const play = make("button", {type: "button", className: "play", "aria-label": `Play ${hit.name}, ${span(hit)}`}, picture,
    make("span", {className: "badge", textContent: span(hit)}));
  picture.addEventListener("error", async () => {
    const note = make("span", {className: "none", textContent: "No picture"});
    picture.replaceWith(note);
    try { await ask(picture.src); } catch (error) { note.textContent = error.message; }
  });
  play.addEventListener("click", () => { listed = own; openPlayer(place); });
  const like = make("button", {type: "button", className: "act like", textContent: "More like this",
    "aria-label": `More like this: ${hit.name}, ${span(hit)}`});
  like.addEventListener("click", () => more(hit));
  const folder = hit.path.slice(0, -hit.name.length - 1) || "/";
  const bar = make("i", {"aria-hidden": "true"});
  bar.style.setProperty("--match", `${Math.round(100 * hit.match)}%`);
  const score = make("span", {className: "score", title: `${measures[hit.measure]}: ${rated(hit, 3)}`
    + (hit.reranked ? `; similarity ${hit.similarity.toFixed(3)}` : ""), "aria-label": `${measures[hit.measure]} ${hit.match.toFixed(2)}`}, bar, hit.match.toFixed(2));
  const words = wordsOf(hit);
  const about = words === undefined ? make("small", {className: "folder", title: hit.path}, make("bdi", {textContent: folder}))
    : make("small", {className: "words", textContent: String(words), title: String(words)});
  const node = make("li", {className: hit.moment > 1 ? "card further" : "card"}, play,
    make("div", {className: "text"}, make("b", {textContent: hit.name, title: hit.path}), score,
      about, ...(hit.copies.length ? [make("small", {className: "copies", textContent: copiesOf(hit), title: hit.copies.join("\n")})] : []), like));
  if (hit.end > hit.start) preview(play, hit);
  return node;
}

// The frames of a moment, one after the other, while the pointer rests on its picture (or the focus, with the keyboard).
function preview(play, hit) {
  let timer, run = 0;
  const stop = () => { clearTimeout(timer); run++; play.querySelector("canvas")?.remove(); };
  const start = () => {
    if (still.matches || !hovers.matches) return;
    stop();
    const mine = run;
    timer = setTimeout(async () => {
      const strip = await loadStrip(hit);
      if (!strip || mine !== run || !play.querySelector("img")) return;
      const canvas = make("canvas");
      play.querySelector("img").after(canvas);
      animate(canvas, strip, () => mine === run && canvas.isConnected);
    }, 180);
  };
  play.addEventListener("pointerenter", start);
  play.addEventListener("pointerleave", stop);
  play.addEventListener("focus", () => play.matches(":focus-visible") && start());
  play.addEventListener("blur", stop);
}

const STRIP = 6;  // frames in preview.jpg
async function loadStrip(hit) {
  const strip = new Image();
  strip.src = media(`api/segments/${hit.segment}/preview.jpg`);
  try { await strip.decode(); return strip; } catch { return null; }
}

function animate(canvas, strip, going) {
  const width = canvas.width = strip.naturalWidth / STRIP;
  canvas.height = strip.naturalHeight;
  const paper = canvas.getContext("2d");
  let frame = 0;
  const step = () => {
    if (!going()) return;
    paper.drawImage(strip, width * frame, 0, width, strip.naturalHeight, 0, 0, width, canvas.height);
    canvas.dataset.frame = frame;
    frame = (frame + 1) % STRIP;
    setTimeout(step, 320);
  };
  step();
}

async function more(hit) {
  $("player").close();
  await leaving;
  clip = null;
  history.pushState(null, "", address(String(hit.segment)));
  search({like: String(hit.segment)});
}
