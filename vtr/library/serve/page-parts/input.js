// Forms, keys, files that are dropped, the history; and the beginning.
"use strict";

function submit() {
  document.activeElement?.blur?.();  // puts the keyboard of a phone away
  if (!$("q").value.trim()) return clip || new URLSearchParams(location.search).has("like") ? resubmit() : welcome();
  clip = null;
  const next = address();
  if (next !== location.search) history.pushState(null, "", next);
  labelFilters();
  search({});
}
$("form").addEventListener("submit", event => { event.preventDefault(); submit(); });

function home() {
  clip = null;
  running?.abort(); running = null;
  history.pushState(null, "", location.pathname);
  restore();
  $("q").focus();
}
$("home").addEventListener("click", event => { event.preventDefault(); home(); });
$("chip").lastElementChild.onclick = home;
document.querySelector("header").addEventListener("change", event => {
  if ([$("q"), $("file"), fields.then].includes(event.target)) return;  // words are asked for with Enter
  if (given("then") || !event.target.closest("#then")) resubmit();
});
function clearFilters() {
  for (const name of Object.keys(usual)) if (!besides.includes(name)) fields[name].value = usual[name];
  resubmit();
}
$("clear").onclick = clearFilters;
$("then-on").onclick = () => { showThen(true); fields.then.focus(); };
$("then-off").onclick = () => {
  const had = given("then");
  fields.then.value = "";
  showThen(false);
  $("then-on").focus();
  if (had) resubmit();
};
$("cancel").onclick = () => {
  running?.abort(); running = null;
  $("cancel").hidden = true;
  clearGrid();
  say("Cancelled");
};
$("rest").onclick = () => {
  const counts = [...fields.k.options].map(option => option.value);
  fields.k.value = counts[counts.indexOf(fields.k.value) + 1];
  labelFilters();
  const like = new URLSearchParams(location.search).get("like");
  if (!clip) history.replaceState(null, "", address(like));
  search({like, file: clip, further: true});
};

// -- a clip or a picture of one's own ---------------------------------------------------------------------------------

$("pick").onclick = () => $("file").click();
$("file").onchange = () => { const file = $("file").files[0]; $("file").value = ""; if (file) byClip(file); };
function byClip(file) {
  clip = file;
  history.pushState(null, "", location.pathname);  // a clip cannot be kept in the address
  search({file});
}
let dragged = 0;
const carries = event => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", event => { if (carries(event)) { dragged++; $("drop").hidden = false; } });
addEventListener("dragleave", event => { if (carries(event) && --dragged <= 0) { dragged = 0; $("drop").hidden = true; } });
addEventListener("dragover", event => carries(event) && event.preventDefault());
addEventListener("drop", event => {
  if (!carries(event)) return;
  event.preventDefault();
  dragged = 0;
  $("drop").hidden = true;
  const file = event.dataTransfer.files[0];
  if (file) byClip(file);
});
addEventListener("popstate", () => {
  const at = new URLSearchParams(location.search).has("at");
  if (!at) { pushed = false; $("player").close(); }
  if (shown !== null && question() === shown && !running) return at ? openAddressed() : undefined;
  $("player").close();
  running?.abort(); running = null;
  restore();
});

// -- keys -------------------------------------------------------------------------------------------------------------

function playerKey(event) {
  const at = event.target, video = screenVideo();
  if (event.key === "n" && !$("next").disabled) openPlayer(playing + 1);
  else if (event.key === "p" && !$("prev").disabled) openPlayer(playing - 1);
  else if (event.key === "m") more(listed[playing]);
  else if (event.key === "r" && !$("again").hidden) replay();
  else if (video && event.key === " " && !at.closest?.("button, a, summary")) video.paused ? video.play() : video.pause();
  else if (video && (event.key === "ArrowLeft" || event.key === "ArrowRight")) seek(video.currentTime + (event.key === "ArrowLeft" ? -5 : 5));
  else if (video && at === $("timeline") && (event.key === "Home" || event.key === "End")) seek(event.key === "Home" ? 0 : length);
  else return;
  event.preventDefault();
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  const typing = at.matches?.("input, select, textarea");
  if ($("player").open) return typing ? undefined : playerKey(event);
  if (event.key === "Escape" && closeMenus()) return;
  if (event.key === "/" && !typing) { event.preventDefault(); $("q").focus(); $("q").select(); return; }
  const plays = [...document.querySelectorAll("#main button.play")];
  if (at === $("q") && event.key === "ArrowDown" && plays.length) { event.preventDefault(); plays[0].focus(); return; }
  if (typing) return;
  const own = at.closest?.(".card, .tile");
  if (!own) {
    if (at === document.body && plays.length && event.key.startsWith("Arrow")) { event.preventDefault(); plays[0].focus(); }
    return;
  }
  const place = plays.indexOf(own.querySelector(".play"));
  if (event.key === "m") return own.querySelector(".like")?.click();
  const here = plays[place].getBoundingClientRect(), middle = here.left + here.width / 2;
  const row = play => play.getBoundingClientRect().top, beside = play => { const box = play.getBoundingClientRect(); return box.left <= middle && middle <= box.right; };
  const next = {
    ArrowRight: () => plays[place + 1], ArrowLeft: () => plays[place - 1],
    ArrowDown: () => plays.slice(place + 1).find(play => row(play) > here.top + 1 && beside(play)) ?? plays.at(-1),
    ArrowUp: () => plays.slice(0, place).findLast(play => row(play) < here.top - 1 && beside(play)),
  }[event.key];
  if (!next) return;
  event.preventDefault();
  (next() ?? (event.key === "ArrowRight" ? plays[place] : $("q"))).focus();
});

// -- begin ------------------------------------------------------------------------------------------------------------

const built = ["path", "duration", "start", "end", "date"];  // metadata of such a name is asked for as meta.NAME
const column = name => `, ${!/^[A-Za-z_][\w.]*$/.test(name) ? `\`${name}\`` : built.includes(name) ? `meta.${name}` : name}`;

async function begin() {
  await entered;
  info = await (await ask("api/info")).json();
  $("q").maxLength = info.limits.query;
  showThen(!$("then").hidden);
  $("ranking").hidden = !info.reranks;
  $("about").textContent = [`${info.name}: ${plural(info.videos, "video")}, ${plural(info.segments, "moment")}${info.unreadable ? `, ${info.unreadable} unreadable` : ""}`,
    info.model && `model ${info.model}${info.trained_on && info.trained_on !== info.model ? `, trained on ${info.trained_on}` : ""}`].filter(Boolean).join(" · ");
  $("columns").textContent = `Columns: path, duration, start, end, date${info.columns.map(column).join("")}`;
  if (!running && $("state").querySelector(".welcome")) { welcome(); openAddressed(); }
}

function enter() {  // with the token of the address, which is taken out of it
  const key = new URLSearchParams(location.hash.slice(1)).get("token");
  if (key !== null) history.replaceState(null, "", location.pathname + location.search);
  if (key) entered = login(key).catch(() => {});
  return key;
}
addEventListener("hashchange", () => {  // a link with a token, pasted where the page is open already
  if (!enter()) return;
  restore();
  begin().catch(error => failed(error, () => location.reload()));
});
enter();
restore();
if (hovers.matches && !location.search) $("q").focus();
begin().catch(error => failed(error, () => location.reload()));
