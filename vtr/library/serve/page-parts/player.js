// The player: a moment in its video, what is known of it, and where to go from there.
"use strict";

// The open moment in the address: a link to it can be copied, and Back closes it.
function remember(hit) {
  const values = new URLSearchParams(location.search), open = values.has("at");
  if (values.get("at") === String(hit.segment)) return;
  values.set("at", hit.segment);
  if (library) values.set("library", library);
  if (open) history.replaceState(null, "", `?${values}`);
  else { history.pushState(null, "", `?${values}`); pushed = true; }
}

function openPlayer(place) {
  playing = place;
  const hit = listed[place];
  const url = media(`api/videos/${hit.video}/file`);
  remember(hit);
  const when = hit.whole ? clock(hit.duration) : `${span(hit)}${hit.duration && hit.kind !== "image" ? ` of ${clock(hit.duration)}` : ""}`;
  $("title").replaceChildren(hit.name, make("small", {textContent: [when, folder(hit.path)].filter(Boolean).join(" · "), title: hit.path}));
  $("facts").replaceChildren(...factsOf(hit));
  $("facts").hidden = !$("facts").childElementCount;
  $("download").href = media(`api/videos/${hit.video}/file`, {download: "true"});
  $("download").download = hit.name;
  $("prev").disabled = place === 0;
  $("next").disabled = place === listed.length - 1;
  const image = hit.kind === "image";
  for (const name of ["again", "course"]) $(name).hidden = image || (name === "again" && hit.whole);
  $("clip-fast").hidden = $("clip-exact").hidden = image || Boolean(hit.whole);
  $("save").hidden = false;
  $("told").textContent = "";
  $("screen").replaceChildren();
  if (image) {
    const picture = make("img", {alt: hit.name, src: url});
    picture.addEventListener("error", () => sorry(hit, url));
    $("screen").append(picture);
  } else {
    const video = make("video", {controls: true, autoplay: true, playsInline: true, preload: "auto", src: `${url}#t=${entry(hit).toFixed(3)}`});
    const begin = () => { if (Math.abs(video.currentTime - entry(hit)) > .0015) video.currentTime = entry(hit); };
    video.addEventListener("loadedmetadata", () => video.videoWidth ? begin() : sorry(hit, url), {once: true});
    video.addEventListener("error", () => video.isConnected && sorry(hit, url));
    $("screen").append(video);
    drawTimeline(hit, video);
    video.play()?.catch(() => {});
  }
  if (!$("player").open) { lastFocus = document.activeElement; $("player").showModal(); }
  $("screen").firstChild.focus?.();
}

// -- what is known of a moment ----------------------------------------------------------------------------------------

const part = (title, ...inside) => make("section", {}, make("h3", {textContent: title}), ...inside);
const seeking = (time, label, ...inside) => {
  const button = make("button", {type: "button", className: "seek", "aria-label": label}, make("time", {textContent: whole(time)}), make("span", {}, ...inside));
  button.addEventListener("click", () => seek(time));
  return button;
};

function factsOf(hit) {
  const found = [], words = wordsOf(hit);
  if (words !== undefined) found.push(make("p", {className: "caption", textContent: String(words)}));
  if (hit.weak) found.push(make("p", {className: "model", textContent: `Weak: ${percent(1 - hit.confidence)} of unrelated queries find a moment as good as this one.`}));
  if (hit.keyframes) found.push(make("p", {className: "model", textContent: "Only key frames of this video were looked at when it was indexed."}));
  if (hit.steps.length) found.push(part("In this order", ...hit.steps.map(step => seeking(step.start, `${step.text}, at ${clock(step.start)}`, step.text))));
  if (hit.said.length) found.push(part("Said", ...hit.said.map(cue => {
    const line = seeking(cue.start, `${cue.text}, at ${clock(cue.start)}`, ...marked(cue));
    line.dataset.from = cue.start;
    line.dataset.to = cue.end;
    return line;
  })));
  const same = listed.flatMap((other, place) => !hit.whole && other.video === hit.video && !other.steps.length ? [place] : []);
  if (same.length > 1) found.push(part("Moments of this video", make("div", {className: "others"}, ...byTime(same, listed).map(place => {
    const button = make("button", {type: "button", textContent: whole(listed[place].start), title: span(listed[place]), "aria-label": `Play ${span(listed[place])}`});
    if (listed[place] === hit) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => openPlayer(place));
    return button;
  }))));
  const facts = [...Object.entries(hit.metadata).filter(([, value]) => value !== words), ...hit.copies.map(path => ["copy", path]), ...near(hit).map(path => ["looks the same", path])];
  if (facts.length) found.push(make("details", {className: "more", open: facts.length < 8}, make("summary", {}, icon("on"), "Details"),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {textContent: name}), make("dd", {textContent: String(value)})]))));
  return found;
}

// Why it does not play: refused by the server, or a format that this browser does not know.
async function sorry(hit, url) {
  const node = $("screen").firstChild;
  node?.removeAttribute?.("src");
  const box = make("div", {className: "sorry"});
  const text = make("p", {role: "alert"});
  box.append(text);
  $("screen").replaceChildren(box);
  $("again").hidden = $("course").hidden = true;
  try {
    await ask(url, {headers: {Range: "bytes=0-0"}});
  } catch (error) {
    text.textContent = error.message;
    $("save").hidden = true;
    return;
  }
  const kind = (hit.name.match(/\.([a-z0-9]+)$/i)?.[1] || "unknown").toUpperCase();
  text.textContent = `This browser cannot play this ${kind} file. Here are frames of the moment; save it exactly, or download the file, to play it.`;
  const strip = await loadStrip(hit);
  if (strip && box.isConnected) {
    const canvas = make("canvas", {role: "img", "aria-label": `Frames of ${hit.name}`});
    box.prepend(canvas);
    if (hit.end > hit.start && !still.matches) animate(canvas, strip, () => canvas.isConnected);
    else animate(canvas, strip, (() => { let n = 0; return () => n++ < 1; })());
  }
  box.append(make("a", {className: "act", href: media(`api/videos/${hit.video}/file`, {download: "true"}), download: hit.name, textContent: "Download the file"}));
}

// -- what it can do ---------------------------------------------------------------------------------------------------

$("player").addEventListener("cancel", event => { if (closeMenus()) event.preventDefault(); });
$("player").addEventListener("close", () => {
  const video = screenVideo();
  if (video) { video.pause(); video.removeAttribute("src"); video.load(); }
  $("screen").replaceChildren();
  closeMenus();
  if (new URLSearchParams(location.search).has("at")) {
    if (pushed) {
      leaving = new Promise(done => { addEventListener("popstate", done, {once: true}); setTimeout(done, 1000); });
      history.back();
    }
    else { const rest = question(); history.replaceState(null, "", rest ? `?${rest}` : location.pathname); }
  }
  pushed = false;
  (lastFocus?.isConnected ? lastFocus : document.querySelector("#main .play") ?? $("q")).focus();
});
$("player").addEventListener("click", event => event.target === $("player") && $("player").close());
$("close").onclick = () => $("player").close();
$("prev").onclick = () => openPlayer(playing - 1);
$("next").onclick = () => openPlayer(playing + 1);
$("similar").onclick = () => more(listed[playing]);

const screenVideo = () => $("screen").querySelector("video");
function seek(time) {
  const video = screenVideo();
  if (video) { video.currentTime = Math.max(0, Math.min(time + .001, video.duration || time)); video.play()?.catch(() => {}); }
}
const replay = () => seek(listed[playing].start);
$("again").onclick = replay;
$("clip-fast").onclick = () => saveClip("");
$("clip-exact").onclick = () => saveClip("true");
function saveClip(exact) {
  const hit = listed[playing];
  take(media(`api/segments/${hit.segment}/clip`, {start: hit.start, end: hit.end, ...(exact && {exact})}), "the clip", text => { if (listed[playing] === hit) $("told").textContent = text; });
}
$("link").onclick = async () => {
  try { await navigator.clipboard.writeText(location.href); $("told").textContent = "Link copied"; }
  catch {  // a page that came without https may not
    const field = make("input", {value: location.href, readOnly: true, "aria-label": "Link to this moment"});
    $("told").replaceChildren(field);
    field.select();
  }
};
