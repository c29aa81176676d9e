// The line under the player: the whole video, its moments, how well each place fits the words, and where it plays.
"use strict";

const curves = new Map();  // by video: promises of the curves of the words on show

function curveOf(hit) {
  if (!asked || hit.whole || !asked.getAll("q").length) return Promise.resolve(null);
  if (!curves.has(hit.video)) {
    const values = new URLSearchParams(library && {library});
    for (const name of ["q", "minus"]) for (const text of asked.getAll(name)) values.append(name, text);
    curves.set(hit.video, ask(`api/videos/${hit.video}/curve?${values}`).then(answer => answer.json()).catch(() => null));
  }
  return curves.get(hit.video);
}

let length = 0;  // seconds of the video in the player
const share = time => `${(100 * Math.max(0, Math.min(1, time / length))).toFixed(3)}%`;

function drawTimeline(hit, video) {
  length = hit.duration || hit.end || 1;
  for (const path of $("timeline").querySelectorAll("path")) path.removeAttribute("d");
  $("timeline").setAttribute("aria-valuemin", "0");
  $("timeline").setAttribute("aria-valuemax", length.toFixed(1));
  $("legend").textContent = hit.whole ? "" : "The moment in its video";
  const spans = hit.steps.length ? hit.steps : [...listed.filter(other => other !== hit && other.video === hit.video), hit];
  $("timeline").querySelector(".spans").replaceChildren(...(hit.whole ? [] : spans.map(moment => {
    const mark = make("span", {className: moment === hit || hit.steps.length ? "moment" : "moment other"});
    mark.style.setProperty("left", share(moment.start));
    mark.style.setProperty("width", share(moment.end - moment.start));
    return mark;
  })));
  follow(video);
  for (const what of ["timeupdate", "seeking", "loadedmetadata"]) video.addEventListener(what, () => video.isConnected && follow(video));
  const glide = () => { if (video.isConnected) { follow(video); if (!video.paused) requestAnimationFrame(glide); } };
  if (!still.matches) video.addEventListener("play", glide);
  curveOf(hit).then(curve => { if (curve && video.isConnected) drawCurve(curve); });
}

// Between the video's least and its best; but a video that fits equally well everywhere is a flat line.
const LEAST_RANGE = .04;
function drawCurve({scores, start, step, exact, query}) {
  const known = scores.filter(score => score !== null);
  if (known.length < 2) return;
  const top = Math.max(...known), low = Math.min(Math.min(...known), top - LEAST_RANGE);
  const x = place => (1000 * (start + step * (place + .5)) / length).toFixed(2), y = score => (94 - 84 * (score - low) / (top - low)).toFixed(2);
  let stroke = "", fill = "", from = null;
  scores.forEach((score, place) => {
    if (score === null) { from = null; return; }
    stroke += `${from === null ? "M" : "L"}${x(place)} ${y(score)}`;
    from ??= place;
    if (place === scores.length - 1 || scores[place + 1] === null)
      fill += `M${x(from)} 100` + scores.slice(from, place + 1).map((s, i) => `L${x(from + i)} ${y(s)}`).join("") + `L${x(place)} 100Z`;
  });
  $("timeline").querySelector(".fill").setAttribute("d", fill);
  $("timeline").querySelector(".stroke").setAttribute("d", stroke);
  $("legend").textContent = `How well each place fits “${query}”${exact ? "" : ", by segments"}`;
}

function follow(video) {
  const now = video.currentTime;
  $("timeline").querySelector(".head").style.setProperty("left", share(now));
  $("timeline").setAttribute("aria-valuenow", now.toFixed(1));
  $("timeline").setAttribute("aria-valuetext", `${clock(now)} of ${clock(length)}`);
  $("clock").textContent = `${clock(now)} / ${clock(length)}`;
  for (const line of $("facts").querySelectorAll("[data-from]")) line.classList.toggle("now", Number(line.dataset.from) <= now && now < Number(line.dataset.to));
}

const under = event => {
  const box = $("timeline").getBoundingClientRect();
  return length * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
};
$("timeline").addEventListener("pointerdown", event => {
  if (event.button) return;
  $("timeline").setPointerCapture(event.pointerId);
  seek(under(event));
});
$("timeline").addEventListener("pointermove", event => {
  const tip = $("timeline").querySelector(".tip"), time = under(event);
  tip.hidden = false;
  tip.textContent = clock(time);
  tip.style.setProperty("left", share(time));
  if ($("timeline").hasPointerCapture(event.pointerId)) seek(time);
});
$("timeline").addEventListener("pointerleave", () => { $("timeline").querySelector(".tip").hidden = true; });
