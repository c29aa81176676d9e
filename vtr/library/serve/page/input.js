// Forms, keys, files that are dropped, the history; and the beginning.
"use strict";

$("form").addEventListener("submit", event => {
  event.preventDefault();
  document.activeElement?.blur?.();  // puts the keyboard of a phone away
  if (!$("q").value.trim()) return clip || new URLSearchParams(location.search).has("like") ? resubmit() : welcome();
  clip = null;
  const next = address();
  if (next !== location.search) history.pushState(null, "", next);
  labelFilters();
  search({});
});
$("home").addEventListener("click", event => {
  event.preventDefault();
  running?.abort(); running = null;
  history.pushState(null, "", location.pathname);
  restore();
  $("q").focus();
});
for (const input of Object.values(fields)) input.addEventListener("change", resubmit);
function clearFilters() {
  for (const name of Object.keys(usual)) fields[name].value = usual[name];
  resubmit();
}
$("clear").onclick = clearFilters;
$("cancel").onclick = () => {
  running?.abort(); running = null;
  $("cancel").hidden = true;
  $("grid").replaceChildren();
  say("Cancelled");
};
$("chip").lastElementChild.onclick = () => {
  clip = null;
  running?.abort(); running = null;
  history.pushState(null, "", location.pathname);
  restore();
  $("q").focus();
};
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

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  const typing = at.matches?.("input, select, textarea");
  if ($("player").open) {
    if (typing) return;
    if (event.key === "n" && !$("next").disabled) openPlayer(playing + 1);
    else if (event.key === "p" && !$("prev").disabled) openPlayer(playing - 1);
    else if (event.key === "m") more(listed[playing]);
    return;
  }
  if (event.key === "/" && !typing) { event.preventDefault(); $("q").focus(); $("q").select(); return; }
  const plays = [...document.querySelectorAll("#grid .play:is(button)")];
  if (at === $("q") && event.key === "ArrowDown" && plays.length) { event.preventDefault(); plays[0].focus(); return; }
  if (typing) return;
  const card = at.closest?.(".card");
  if (!card) {
    if (at === document.body && plays.length && event.key.startsWith("Arrow")) { event.preventDefault(); plays[0].focus(); }
    return;
  }
  const place = plays.indexOf(card.querySelector(".play"));
  if (event.key === "m") return more(hits[place]);
  const columns = Math.max(1, plays.filter(p => p.closest(".card").offsetTop === plays[0].closest(".card").offsetTop).length);
  const move = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
  if (!move) return;
  event.preventDefault();
  if (place + move < 0) $("q").focus();
  else plays[Math.min(place + move, plays.length - 1)].focus();
});

// -- begin ------------------------------------------------------------------------------------------------------------

const built = ["path", "duration", "start", "end", "date"];  // metadata of such a name is asked for as meta.NAME
const column = name => `, ${!/^[A-Za-z_][\w.]*$/.test(name) ? `\`${name}\`` : built.includes(name) ? `meta.${name}` : name}`;

async function begin() {
  await entered;
  info = await (await ask("api/info")).json();
  $("q").maxLength = info.limits.query;
  $("about").textContent = `${info.name}: ${plural(info.videos, "video")}, ${plural(info.segments, "moment")}${info.unreadable ? `, ${info.unreadable} unreadable` : ""}`;
  $("columns").textContent = `Columns: path, duration, start, end, date${info.columns.map(column).join("")}`;
  if (!running && $("state").querySelector(".welcome")) welcome();
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
