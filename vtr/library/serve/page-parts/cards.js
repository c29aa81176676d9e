// Hits as cards, and videos as tiles of the first view.
"use strict";

const measures = {similarity: "similarity to the words", likeness: "likeness to the example", mixed: "similarity and likeness",
  combined: "careful ranking", words: "share of the words that are said", fused: "ranks by pictures and by words"};
const rated = hit => hit.score < 0 && !hit.match ? "<0" : hit.match.toFixed(3);

// One scale for quick and careful: how sure it is, where that is known. A sum of ranks says nothing by itself.
function score(hit) {
  const exact = `${measures[hit.measure]}: ${rated(hit)}${hit.reranked ? `; similarity ${hit.similarity.toFixed(3)}` : ""}`;
  const [value, text, about] = hit.confidence !== null ? [hit.confidence, `${percent(hit.confidence)} sure`, `${percent(hit.confidence)} of unrelated queries find nothing as good here`]
    : hit.by.includes("words") ? [hit.words, `${percent(hit.words)} said`, `${percent(hit.words)} of the words, by their weight, are said`]
    : [hit.match, `${hit.match.toFixed(2)} ${hit.measure === "likeness" ? "alike" : "match"}`, "from 0 to 1"];
  const bar = make("i", {"aria-hidden": "true"});
  bar.style.setProperty("--match", `${Math.round(100 * value)}%`);
  return make("span", {className: "score", title: `${about}; ${exact}`}, bar, text);
}

const byTime = (places, own) => [...places].sort((a, b) => own[a].start - own[b].start);
const wordsOf = hit => hit.metadata.caption ?? hit.metadata.title;

const COMMON = new Set("a an and at by for from in is it of on or the to with".split(" "));
// Subtitles with the words that were asked for marked.
function marked(cue) {
  const wanted = asked ? asked.getAll("q").join(" ").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [] : [];
  const stem = word => word.toLowerCase().replace(/(?:'s|ing|ed|es|s)$/u, "");
  const stems = new Set(wanted.filter(word => !COMMON.has(word)).map(stem));
  return cue.text.split(/([\p{L}\p{N}]+)/u).map((part, i) => i % 2 && stems.has(stem(part)) ? make("mark", {textContent: part}) : part);
}

// Of a hit, which need not begin and end with its segment.
const ends = hit => hit.end > hit.start && !hit.whole ? {start: hit.start, end: hit.end} : {};

function thumbnail(hit, label, ...inside) {
  const picture = make("img", {alt: "", loading: "lazy", decoding: "async", src: media(`api/segments/${hit.segment}/thumbnail.jpg`, ends(hit))});
  const play = make("button", {type: "button", className: "play", "aria-label": label}, picture, ...inside);
  picture.addEventListener("error", async () => {
    const note = make("span", {className: "none", textContent: "No picture"});
    picture.replaceWith(note);
    try { await ask(picture.src); } catch (error) { note.textContent = error.message; }
  });
  if (hit.kind !== "image") preview(play, hit);
  return play;
}

const near = hit => hit.near_copies ?? [];
const copies = hit => [hit.copies.length && `${plural(hit.copies.length + 1, "copy")} of this file`,
  near(hit).length && `${plural(near(hit).length, "file")} ${near(hit).length === 1 ? "looks" : "look"} the same`].filter(Boolean).join(", ");

function card(places, own) {
  const hit = own[places[0]];
  const play = thumbnail(hit, `Play ${hit.name}, ${span(hit)}${hit.weak ? ", weak" : ""}`, make("span", {className: "badge", textContent: span(hit)}));
  play.addEventListener("click", () => { listed = own; openPlayer(places[0]); });
  const like = make("button", {type: "button", className: "like", title: "More like this", "aria-label": `More like this: ${hit.name}, ${span(hit)}`}, icon("like"));
  like.addEventListener("click", () => more(hit));
  const text = make("div", {className: "text"}, make("b", {textContent: hit.name, title: hit.path}));
  const words = wordsOf(hit), where = folder(hit.path);
  text.append(make("div", {className: "meta"}, score(hit), ...(where ? [make("small", {className: "folder", title: hit.path}, make("bdi", {textContent: where}))] : [])));
  if (words !== undefined) text.append(make("small", {className: "words", textContent: String(words), title: String(words)}));
  if (hit.said.length) text.append(make("small", {className: "said"}, "“", ...marked(hit.said[0]), "”"));
  if (hit.steps.length) text.append(make("ol", {className: "steps"}, ...hit.steps.map(step =>
    make("li", {}, make("span", {textContent: step.text}), make("time", {textContent: whole(step.start), title: span(step)})))));
  if (places.length > 1) text.append(make("div", {className: "others", role: "group", "aria-label": `More moments of ${hit.name}`}, make("small", {textContent: "also at"}),
    ...byTime(places.slice(1), own).map(place => {
      const other = make("button", {type: "button", textContent: whole(own[place].start), "aria-label": `Play ${hit.name}, ${span(own[place])}`, title: span(own[place])});
      other.addEventListener("click", () => { listed = own; openPlayer(place); });
      return other;
    })));
  if (hit.copies.length || near(hit).length) text.append(make("details", {className: "copies"}, make("summary", {textContent: copies(hit)}),
    make("ul", {}, ...hit.copies.map(path => make("li", {textContent: short(path), title: path})),
      ...near(hit).map(path => make("li", {textContent: `${short(path)}, looks the same`, title: path})))));
  return make("li", {className: hit.weak ? "card weak" : "card"}, play, like, text);
}

function tile(hit, place, own) {
  const play = thumbnail(hit, `Play ${hit.title}`, ...(hit.duration ? [make("span", {className: "badge", textContent: whole(hit.duration)})] : []));
  play.addEventListener("click", () => { listed = own; openPlayer(place); });
  return make("li", {className: "tile"}, play, make("div", {className: "text"}, make("b", {textContent: hit.title, title: hit.path}),
    make("small", {textContent: [hit.modified?.slice(0, 10), folder(hit.path)].filter(Boolean).join(" · ")})));
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
  strip.src = media(`api/segments/${hit.segment}/preview.jpg`, ends(hit));
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
