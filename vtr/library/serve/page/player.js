// The player.
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
  $("title").replaceChildren(hit.name, make("small", {textContent: `${span(hit)}${hit.duration ? ` of ${clock(hit.duration)}` : ""} · ${hit.path}`}));
  const facts = [...Object.entries(hit.metadata), ...hit.copies.map(copy => ["copy", copy])];
  $("facts").querySelector("p").textContent = wordsOf(hit) ?? "";
  $("facts").querySelector("dl").replaceChildren(
    ...facts.flatMap(([name, value]) => [make("dt", {textContent: name}), make("dd", {textContent: String(value)})]));
  $("facts").hidden = !facts.length;
  $("download").href = media(`api/videos/${hit.video}/file`, {download: "true"});
  $("download").download = hit.name;
  $("download").hidden = false;
  $("prev").disabled = place === 0;
  $("next").disabled = place === listed.length - 1;
  const image = hit.kind === "image";
  $("again").hidden = image;
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
    video.play()?.catch(() => {});
  }
  if (!$("player").open) { lastFocus = document.activeElement; $("player").showModal(); }
  $("screen").firstChild.focus?.();
}

// Why it does not play: refused by the server, or a format that this browser does not know.
async function sorry(hit, url) {
  const node = $("screen").firstChild;
  node?.removeAttribute?.("src");
  const box = make("div", {className: "sorry"});
  const text = make("p", {role: "alert"});
  box.append(text);
  $("screen").replaceChildren(box);
  $("again").hidden = true;
  try {
    await ask(url, {headers: {Range: "bytes=0-0"}});
  } catch (error) {
    text.textContent = error.message;
    $("download").hidden = true;
    return;
  }
  const kind = (hit.name.match(/\.([a-z0-9]+)$/i)?.[1] || "unknown").toUpperCase();
  text.textContent = `This browser cannot play this ${kind} file. Here are frames of the moment; download the file to play it elsewhere.`;
  const strip = await loadStrip(hit);
  if (strip && box.isConnected) {
    const canvas = make("canvas", {role: "img", "aria-label": `Frames of ${hit.name}`});
    box.prepend(canvas);
    if (hit.end > hit.start && !still.matches) animate(canvas, strip, () => canvas.isConnected);
    else animate(canvas, strip, (() => { let n = 0; return () => n++ < 1; })());
  }
  box.append(make("a", {className: "act", href: media(`api/videos/${hit.video}/file`, {download: "true"}), download: hit.name, textContent: "Download the file"}));
}

$("player").addEventListener("close", () => {
  const video = $("screen").querySelector("video");
  if (video) { video.pause(); video.removeAttribute("src"); video.load(); }
  $("screen").replaceChildren();
  if (new URLSearchParams(location.search).has("at")) {
    if (pushed) {
      leaving = new Promise(done => { addEventListener("popstate", done, {once: true}); setTimeout(done, 1000); });
      history.back();
    }
    else { const rest = question(); history.replaceState(null, "", rest ? `?${rest}` : location.pathname); }
  }
  pushed = false;
  (lastFocus?.isConnected ? lastFocus : document.querySelector("#grid .play") ?? $("q")).focus();
});
$("player").addEventListener("click", event => event.target === $("player") && $("player").close());
$("close").onclick = () => $("player").close();
$("prev").onclick = () => openPlayer(playing - 1);
$("next").onclick = () => openPlayer(playing + 1);
$("similar").onclick = () => more(listed[playing]);
$("again").onclick = () => {
  const video = $("screen").querySelector("video");
  if (video) { video.currentTime = entry(listed[playing]); video.play(); }
};
