// What is asked for: kept in the address, so that reload, back and a bookmark work.
"use strict";

const fields = {path: $("f-path"), min: $("f-min"), max: $("f-max"), k: $("f-k"), rerank: $("f-rerank"), where: $("f-where"),
  minus: $("f-minus"), since: $("f-since"), until: $("f-until"), group: $("f-group")};
const usual = {path: "", min: "", max: "", k: "24", rerank: "0", where: "", minus: "", since: "", until: "", group: "best"};
const texts = text => text.split(/\s\+\s/).map(part => part.trim()).filter(Boolean);  // "a dog + grass": both count

function condition() {
  const parts = [];
  const path = fields.path.value.trim();
  if (path) {
    if (path.includes('"') && path.includes("'")) throw new Refusal(400, "A path with both kinds of quotes cannot be searched for.");
    parts.push(path.includes('"') ? `path ~ '${path}'` : `path ~ "${path}"`);
  }
  for (const [name, sign] of [["min", ">="], ["max", "<="]]) {
    const input = fields[name], number = input.valueAsNumber;
    if (!input.validity.valid) throw new Refusal(400, "The video length is not a number of seconds.");
    if (!Number.isNaN(number)) parts.push(`duration ${sign} ${number.toFixed(3)}`);
  }
  if (fields.since.value) parts.push(`date >= "${fields.since.value}"`);
  if (fields.until.value) parts.push(`date <= "${fields.until.value}"`);
  if (fields.where.value.trim()) parts.push(`(${fields.where.value.trim()})`);
  return parts.join(" and ");
}

function labelFilters() {
  const count = Object.keys(usual).filter(name => fields[name].value.trim() !== usual[name]).length;
  $("clear").hidden = !count;
  $("filters-label").textContent = count ? `Filters (${count})` : "Filters";
  return count;
}

function address(like) {
  const values = new URLSearchParams();
  const text = $("q").value.trim();
  if (like) values.set("like", like); else if (text) values.set("q", text);
  for (const name of Object.keys(usual)) {
    const value = fields[name].value.trim();
    if (value !== usual[name]) values.set(name, value);
  }
  return "?" + values;
}

const number = /^[0-9]{1,18}$/;
const question = () => { const values = new URLSearchParams(location.search); values.delete("at"); values.delete("library"); return String(values); };
const media = (path, values = {}) => { const all = new URLSearchParams({...(library && {library}), ...values}); const text = String(all); return text ? `${path}?${text}` : path; };

// The moment that the address names: among those on show, or alone.
async function openAddressed() {
  const values = new URLSearchParams(location.search), at = values.get("at");
  if (!at || !number.test(at)) return;
  const place = hits.findIndex(hit => String(hit.segment) === at);
  if (place >= 0) { listed = hits; return openPlayer(place); }
  const of = values.get("library");
  try {
    await entered;
    const answer = await (await ask(`api/segments/${at}${of ? `?library=${encodeURIComponent(of)}` : ""}`)).json();
    if (new URLSearchParams(location.search).get("at") !== at) return;
    library = answer.library;
    listed = answer.hits;
    openPlayer(0);
  } catch (error) { error.status === 401 ? locked() : say(error.message); $("line").hidden = false; }
}

function restore() {
  const values = new URLSearchParams(location.search);
  shown = null;
  $("q").value = values.get("q") || "";
  for (const name of Object.keys(usual)) {
    fields[name].value = values.get(name) ?? usual[name];
    if (fields[name].value === "") fields[name].value = usual[name];
  }
  clip = null;
  labelFilters();
  const like = values.get("like");
  if (like && number.test(like)) return search({like});
  if ($("q").value) return search({});
  welcome();
  openAddressed();
}

function resubmit() {  // after a change of a filter: the same question again
  const like = new URLSearchParams(location.search).get("like");
  labelFilters();
  if (clip) return search({file: clip});
  if (like) { history.replaceState(null, "", address(like)); return search({like}); }
  if ($("q").value.trim()) { history.replaceState(null, "", address()); return search({}); }
}
