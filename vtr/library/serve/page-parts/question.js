// What is asked for: kept in the address, so that reload, back and a bookmark work.
"use strict";

const usual = {then: "", order: "then", within: "60", by: "", path: "", min: "", max: "", k: "24", rerank: "0", where: "",
  minus: "", since: "", until: "", sure: "", copies: "", group: "4"};
const fields = Object.fromEntries(Object.keys(usual).map(name => [name, $(`f-${name}`) ?? $("form").elements[name]]));
const besides = ["then", "order", "within", "by"];  // not counted among the filters
const texts = text => text.split(/\s\+\s/).map(part => part.trim()).filter(Boolean);  // "a dog + grass": both count
const given = name => fields[name].value.trim();

function condition() {
  const parts = [];
  const path = given("path");
  if (path) {
    if (path.includes('"') && path.includes("'")) throw new Refusal(400, "A path with both kinds of quotes cannot be searched for.");
    parts.push(path.includes('"') ? `path ~ '${path}'` : `path ~ "${path}"`);
  }
  for (const [name, sign] of [["min", ">="], ["max", "<="]]) {
    const input = fields[name], number = input.valueAsNumber;
    if (!input.validity.valid) throw new Refusal(400, "The video length is not a number of seconds.");
    if (!Number.isNaN(number)) parts.push(`duration ${sign} ${number.toFixed(3)}`);
  }
  if (given("since")) parts.push(`date >= "${given("since")}"`);
  if (given("until")) parts.push(`date <= "${given("until")}"`);
  if (given("where")) parts.push(`(${given("where")})`);
  return parts.join(" and ");
}

// Parameters of a search: of all kinds, and what only words take.
function parameters() {
  const values = new URLSearchParams({k: given("k")});
  const where = condition();
  if (where) values.set("where", where);
  if (given("copies")) values.set(given("copies"), "true");
  if (given("then")) return values;  // one hit a video
  if (given("group") === "all") values.set("all_moments", "true");
  else if (given("group") !== "best") values.set("moments", given("group"));
  return values;
}
function ofWords(values, text) {
  for (const part of texts(text)) values.append("q", part);
  if (given("sure")) values.set("min_score", given("sure"));
  if (given("then")) {
    if (fields.within.value === "" || !fields.within.validity.valid) throw new Refusal(400, "“within” is not a number of seconds.");
    values.delete("unmerged");
    values.delete("all");
    values.set(given("order"), given("then"));
    values.set("within", given("within"));
    return values;
  }
  for (const part of texts(given("minus"))) values.append("minus", part);
  if (given("rerank") !== "0" && given("by") !== "words") values.set("rerank", given("rerank"));
  if (given("by")) values.set("by", given("by"));
  return values;
}

const changed = name => given(name) !== usual[name];
function labelFilters() {
  const count = Object.keys(usual).filter(name => !besides.includes(name) && changed(name)).length;
  $("clear").hidden = !count;
  $("filters-label").textContent = count ? `Filters (${count})` : "Filters";
  $("where-error").hidden = true;
  fields.where.removeAttribute("aria-invalid");
  return count;
}
function showThen(on) {
  $("then").hidden = !on;
  $("then-on").hidden = on;
  $("ways").hidden = on || !info?.words;  // moments in order are found by pictures
}

function address(like) {
  const values = new URLSearchParams();
  const text = $("q").value.trim();
  if (like) values.set("like", like); else if (text) values.set("q", text);
  for (const name of Object.keys(usual)) if (changed(name)) values.set(name, given(name));
  return "?" + values;
}

const number = /^[0-9]{1,18}$/;
const question = () => { const values = new URLSearchParams(location.search); values.delete("at"); values.delete("library"); return String(values); };

// The moment that the address names: among those on show, or alone.
async function openAddressed() {
  const values = new URLSearchParams(location.search), at = values.get("at");
  if (!at || !number.test(at)) return;
  for (const here of [hits, recent]) {
    const place = here.findIndex(hit => String(hit.segment) === at);
    if (place >= 0) { listed = here; return openPlayer(place); }
  }
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
  showThen(Boolean(given("then")));
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
  if (!new URLSearchParams(location.search).has("q")) welcome();
}
