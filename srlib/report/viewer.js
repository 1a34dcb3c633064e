// judgments.html: filter, show, mark. Every text is set as text, so nothing that a model or a data set wrote becomes markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("form"), list = document.getElementById("list"), more = document.getElementById("more");
const PAGE = 20, TEXTS = ["instruction", "response", "response_a", "response_b", "reference_answer", "rubric"];
let hits = [], drawn = 0;

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);  // strings become text nodes
  return element;
}
const spelled = (value) => (value === null ? "none" : String(value));

function fill(name, values) {
  for (const [value, text] of values) form.elements[name].append(new Option(text, value));
}
const unique = (values) => [...new Set(values.map(spelled))].sort((a, b) => a - b || a.localeCompare(b));
const said = data.items.flatMap((item) => Object.values(item.judged));
fill("arm", data.arms.map((arm) => [arm.name, arm.name]));
fill("gold", unique([...data.items, ...data.pairs].map((item) => item.gold)).map((v) => [v, v]));
fill("score", unique(said.map((j) => j.score)).map((v) => [v, v]));
fill("outcome", unique(said.map((j) => j.failure).filter(Boolean)).map((v) => [v, "failure: " + v]));
fill("slice", data.slices.map((name, place) => [place, name]));
fill("iteration", unique(data.pairs.map((pair) => pair.iteration)).map((v) => [v, v]));
for (const [place, arm] of data.arms.entries()) {
  const box = make("input");
  Object.assign(box, { type: "checkbox", name: "show", value: arm.name, checked: place < 4 || place === data.arms.length - 1 });
  if (data.arms.some((a) => a.name === "sft")) box.checked = box.defaultChecked = ["base", "sft", "sft_careful_only"].includes(arm.name) || /^sre_\d+$/.test(arm.name);
  else box.defaultChecked = box.checked;
  const dot = make("i", arm.plain ? "dot" : "dot hollow");
  dot.style.setProperty("--arm", arm.color);
  const label = make("label", "", box, " ", dot, arm.name);
  label.title = arm.about;
  document.getElementById("arms").append(label);
}
for (const row of [...data.items, ...data.pairs]) {
  const texts = [row.id, ...TEXTS.map((name) => row[name] || ""), ...Object.values(row.judged || {}).map((j) => j.text)];
  for (const side of [row.chosen, row.rejected]) texts.push((side || []).map((piece) => piece[0]).join(""));
  row.searched = texts.join("\n").toLowerCase();
}

function matches(row, wanted) {
  if (wanted.q && !row.searched.includes(wanted.q.toLowerCase())) return false;
  if (wanted.gold && spelled(row.gold) !== wanted.gold) return false;
  if (wanted.view === "pairs") return !wanted.iteration || String(row.iteration) === wanted.iteration;
  if (wanted.slice && !row.slices.includes(Number(wanted.slice))) return false;
  const judged = Object.entries(row.judged).filter(([name]) => !wanted.arm || name === wanted.arm).map(([, j]) => j);
  return judged.some((j) => (!wanted.score || spelled(j.score) === wanted.score) &&
    (!wanted.outcome || (["right", "wrong"].includes(wanted.outcome) ? j.right === (wanted.outcome === "right") : j.failure === wanted.outcome)));
}

function texts(row) {
  const box = make("div");
  for (const name of TEXTS)
    if (row[name]) box.append(make("p", "label", name.replaceAll("_", " ")), make("p", "text", row[name]));
  return box;
}

function item(row, shown) {
  const arms = make("div", "said");
  for (const arm of data.arms.filter((a) => shown.includes(a.name))) {
    const judged = row.judged[arm.name];
    const verdict = make("span", judged.right ? "right" : "wrong", judged.failure || "score " + judged.score, judged.right ? " ✓" : " ✗");
    const box = make("div", "says", make("p", "label", arm.name + ": ", verdict), make("p", "text", judged.text || "nothing"));
    box.style.setProperty("--arm", arm.color);
    arms.append(box);
  }
  return make("section", "item", make("p", "label", make("bdi", "", row.id), " · gold " + spelled(row.gold)), make("div", "two", texts(row), arms));
}

function pair(row) {
  const sides = make("div", "said");
  for (const [place, name] of ["chosen", "rejected"].entries()) {
    const text = make("p", "text");
    for (const [piece, differs] of row[name]) text.append(...(differs ? [make("mark", "", piece.trimEnd()), piece.slice(piece.trimEnd().length)] : [piece]));
    sides.append(make("div", "says " + name, make("p", "label", name + ": " + spelled(row.scores[place]) + ", gold " + spelled(row.gold)), text));
  }
  return make("section", "item", make("p", "label", make("bdi", "", row.pair), " · iteration " + row.iteration + " · " + row.kind), make("div", "two", texts(row), sides));
}

function show() {
  const shown = [...form.querySelectorAll("[name=show]:checked")].map((box) => box.value);
  for (const row of hits.slice(drawn, drawn + PAGE)) list.append(form.elements.view.value === "pairs" ? pair(row) : item(row, shown));
  drawn = Math.min(drawn + PAGE, hits.length);
  more.hidden = drawn === hits.length;
}

function search() {
  const wanted = Object.fromEntries(new FormData(form)), all = data[wanted.view], pairs = wanted.view === "pairs";
  for (const name of ["arm", "outcome", "score", "slice"]) form.elements[name].parentElement.hidden = pairs;
  form.elements.iteration.parentElement.hidden = !pairs;
  document.getElementById("arms").hidden = pairs;
  hits = all.filter((row) => matches(row, wanted));
  drawn = 0;
  list.replaceChildren();
  const made = pairs ? data.pairs.reduce((n, p, i, rows) => n + (i && rows[i - 1].iteration === p.iteration ? 0 : p.of), 0) : all.length;
  document.getElementById("hits").textContent = hits.length + " of " + all.length + (pairs ? " pairs (" + made + " in the run)" : " test items");
  show();
  const kept = Object.entries(wanted).filter(([name, value]) => value && name !== "show" && value !== "items");
  history.replaceState(null, "", "#" + new URLSearchParams(kept));
}

for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (form.elements[name]) form.elements[name].value = value;
form.addEventListener("input", search);
form.addEventListener("reset", () => setTimeout(search));
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", show);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|SELECT/.test(document.activeElement.tagName)) { event.preventDefault(); form.elements.q.focus(); }
});
search();
