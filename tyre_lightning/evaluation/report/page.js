"use strict";

// The page follows one threshold t: tyres whose P(defective) lies below it are accepted. Keys and class names come from
// file names, so they are only ever set as text. No storage, cookies or dialogs: MLflow shows the page in a sandbox.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 24;
const novel = { defective: new Set(data.defective.novel), good: new Set(data.good.novel) };
const all = { defective: first("defective", data.defective.judged), good: first("good", data.good.judged) };
const undecided = data.defective.total - data.defective.judged + data.good.total - data.good.judged
  + all.defective.novel + all.good.novel;
const band = undecided > 0 || (data.point !== null && data.point.reject_from > data.point.threshold);
const pages = { escapes: 0, overkills: 0, unlike: 0 };
let threshold = data.start;

const byId = (id) => document.getElementById(id);

/** How many of the first items hold, where all that hold come first. */
function prefix(length, holds) {
  let low = 0, high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) low = middle + 1; else high = middle;
  }
  return low;
}

/** How many tyres of a side come first for which it holds; of many, to the next that the page has a score of. */
function count(side, holds) {
  const found = prefix(side.scores.length, (i) => holds(side.scores[i])), listed = side.keys.length;
  if (found < listed) return found;
  return found - listed < side.further.length ? side.further[found - listed] : side.judged;
}

const below = (t) => count(data.defective, (score) => score < t);
const goodFrom = (t) => count(data.good, (score) => score >= t);

/** Of the first so many tyres: how many are too unlike good ones to be accepted, how many show each class, and of those. */
function first(kind, end) {
  const side = data[kind], place = end === side.judged ? side.further.length : side.further.indexOf(end);
  if (place >= 0) {
    const { novel: unlike, classes, novelClasses } = side.sums;
    return { novel: unlike[place], classes: classes[place], novelClasses: novelClasses[place] };
  }
  const found = { novel: 0, classes: data.classes.map(() => 0), novelClasses: data.classes.map(() => 0) };
  for (let i = 0; i < end; i++) {
    const unlike = novel[kind].has(i);
    if (unlike) found.novel += 1;
    for (const label of side.labels[i]) {
      found.classes[label] += 1;
      if (unlike) found.novelClasses[label] += 1;
    }
  }
  return found;
}

/** Everything that the threshold decides, in counts; ``places`` has those of the escapes that the page lists. */
function decide(t) {
  const rejectFrom = data.point !== null && data.point.reject_from > data.point.threshold ? Math.max(t, data.point.reject_from) : t;
  // Some tyres are reviewed whatever the threshold: they count, and are neither accepted nor rejected.
  const defective = data.defective.total, good = data.good.total;
  const low = below(t), escaped = first("defective", low), escapes = low - escaped.novel;
  const uncaught = below(rejectFrom), caught = data.defective.judged - uncaught, overkills = goodFrom(rejectFrom);
  const from = goodFrom(t), passed = data.good.judged - from - (all.good.novel - first("good", from).novel);
  const notAccepted = good - passed, listed = range(0, Math.min(low, data.defective.keys.length));
  return {
    defective, good, escapes, caught, notAccepted, overkills, rejectFrom,
    places: listed.filter((i) => !novel.defective.has(i)),
    escapedClasses: escaped.classes.map((found, i) => found - escaped.novelClasses[i]),
    caughtClasses: first("defective", uncaught).classes.map((found, i) => all.defective.classes[i] - found),
    review: defective + good - escapes - caught - (good - notAccepted) - overkills,
  };
}

/** A share with its interval, which Python computed for every count, or for so many that a line leads to the next. */
function share(hits, total, { counts, low, high }) {
  const next = prefix(counts.length - 1, (i) => counts[i] < hits), last = Math.max(0, next - 1);
  const part = counts[next] === hits ? 1 : (hits - counts[last]) / (counts[next] - counts[last]);
  const between = (ends) => part * ends[next] + (1 - part) * ends[last];
  return { rate: total ? hits / total : NaN, low: between(low), high: between(high) };
}

function percent(value) {
  if (Number.isNaN(value)) return "none";
  return `${(100 * value).toFixed(value < 0.1 ? 2 : 1)} %`;
}

const between = (found) => `${percent(found.low)} to ${percent(found.high)}`;
const shown = (value) => String(Number(value.toPrecision(4)));
const confidence = `${Number((100 * data.confidence).toPrecision(3))} %`;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function tile(id, hits, total, kind) {
  const found = share(hits, total, data.intervals[id]);
  byId(id).textContent = percent(found.rate);
  byId(`${id}-detail`).textContent = `${hits} of ${total} ${kind}; ${confidence} interval ${between(found)}`;
}

function verdict(now) {
  if (data.point === null) return ["none", "the model has no operating point"];
  const limit = data.point.promised.max_escape_rate;
  const found = share(now.escapes, now.defective, data.intervals.escape);
  const most = `at most ${percent(limit)}`;
  if (!now.defective) return ["untested", "there are no defective images"];
  if (found.high <= limit) return ["kept", `${most}; the whole interval lies below it`];
  if (found.low > limit) return ["broken", `${most}; the whole interval lies above it`];
  const side = found.rate <= limit ? "the rate lies below it" : "the rate lies above it";
  return [found.rate <= limit ? "not refuted" : "in doubt", `${most}; ${side}, the interval on both sides`];
}

/** The numbers from one to another. */
const range = (start, end) => Array.from({ length: end - start }, (_, i) => start + i);

function fill(table, rows) {
  const body = document.querySelector(`#${table} tbody`);
  body.replaceChildren(...rows.map(([name, ...cells]) => {
    const row = element("tr"), head = element("th", name);
    head.scope = "row";
    row.append(head, ...cells.map((cell) => element("td", cell)));
    return row;
  }));
}

function tables(now) {
  const escapes = now.escapedClasses, caught = now.caughtClasses;
  const classes = data.classes.map((name, i) => [name, i]).filter(([name]) => name !== data.goodClass);
  fill("defects", classes.map(([name, i]) => {
    const found = share(escapes[i], data.counts[i], data.intervals.classes[i]);
    return data.counts[i] ? [name, data.counts[i], escapes[i], percent(found.rate), between(found)] : [name, 0, "", "", ""];
  }));
  const rows = [
    ...classes.map(([name, i]) => [name, escapes[i], data.counts[i] - escapes[i] - caught[i], caught[i]]),
    [data.goodClass, now.good - now.notAccepted, now.notAccepted - now.overkills, now.overkills],
  ];
  fill("outcomes", band ? rows : rows.map(([name, accept, , reject]) => [name, accept, reject]));
}

function markers(now) {
  const escape = now.escapes / now.defective, kept = now.notAccepted / now.good;
  const caught = now.defective - now.escapes;
  const places = { trade: [escape, kept], roc: [kept, 1 - escape], recall: [1 - escape, caught / (caught + now.notAccepted)] };
  for (const marker of document.querySelectorAll(".marker")) {
    const [x, y] = places[marker.dataset.marker];
    const { left, right, bottom, top, limit } = Object.fromEntries(Object.entries(marker.dataset).map(([k, v]) => [k, Number(v)]));
    const inside = x <= limit && y <= limit;
    marker.style.display = inside ? "" : "none";
    if (inside) {
      marker.setAttribute("cx", left + (right - left) * x / limit);
      marker.setAttribute("cy", bottom + (top - bottom) * y / limit);
    }
  }
}

function picture(side, index, alt) {
  const plain = side.pictures[index];
  if (!plain) {
    const reason = side.reasons[index] || "no picture: the page carries those nearest to being wrong";
    return element("p", reason, "missing");
  }
  const heat = side.overlays[index];
  const image = element("img");
  image.alt = alt;
  const show = (on) => { image.src = `data:image/jpeg;base64,${on && heat ? heat : plain}`; };
  show(byId("heat").checked);
  const view = element(heat ? "button" : "div", undefined, "view");
  view.append(image);
  if (!heat) return view;
  view.type = "button";
  view.title = "Show or hide what the model looked at";
  view.setAttribute("aria-pressed", byId("heat").checked);
  view.addEventListener("click", () => {
    const on = view.getAttribute("aria-pressed") !== "true";
    view.setAttribute("aria-pressed", on);
    show(on);
  });
  return view;
}

function card(side, index) {
  const item = element("li"), name = side.labels[index].map((i) => data.classes[i]).join(", ");
  const odds = side.probabilities[index], predicted = data.classes[side.said[index]];
  const right = side.labels[index].includes(side.said[index]);
  const all = element("ul", undefined, "odds");
  all.append(...data.classes.map((other, i) => {
    const line = element("li", `${other} ${odds[i].toFixed(2)}`);
    line.style.setProperty("--share", odds[i]);
    return line;
  }));
  const unlike = side.novelty ? [element("p", `novelty ${shown(side.novelty[index])}`, "score")] : [];
  item.append(
    picture(side, index, `${name}: ${side.keys[index]}`),
    element("p", `P(defective) ${side.scores[index].toFixed(4)}`, "score"),
    ...unlike,
    element("p", right ? name : `${name}, taken for ${predicted}`),
    all,
    element("p", side.keys[index], "key"),
  );
  if (data.byTyre && side.pictureCounts) item.prepend(element("p", `${side.tyres[index]}: the worst of ${side.pictureCounts[index]} pictures`, "tyre"));
  return item;
}

/** A gallery of the places that the page lists, of so many that there are. */
function gallery(id, side, places, total) {
  const section = byId(id), listed = places.length;
  pages[id] = Math.max(0, Math.min(pages[id], Math.ceil(listed / PAGE) - 1));
  const start = pages[id] * PAGE, end = Math.min(start + PAGE, listed);
  const unlisted = total > listed ? ` (the first ${listed} are listed)` : "";
  section.querySelector(".count").textContent = String(total);
  section.querySelector(".range").textContent = total ? `${start + 1} to ${end} of ${total}${unlisted}` : "none at this threshold";
  const [previous, next] = section.querySelectorAll("button[data-step]");
  previous.disabled = start === 0;
  next.disabled = end >= listed;
  const cards = [];
  for (let i = start; i < end; i++) cards.push(card(side, places[i]));
  section.querySelector(".cards").replaceChildren(...cards);
}

function update() {
  const now = decide(threshold);
  tile("escape", now.escapes, now.defective, "defective tyres");
  tile("overkill", now.overkills, now.good, "good tyres");
  byId("review-tile").hidden = !band;
  if (band) tile("review", now.review, now.defective + now.good, "tyres");
  const [word, why] = verdict(now);
  byId("verdict").textContent = word;
  byId("verdict").classList.toggle("broken", word === "broken" || word === "in doubt");
  byId("verdict-detail").textContent = why;
  const rejected = band ? `, reject from ${shown(now.rejectFrom)}` : "";
  byId("summary").textContent =
    `Escape ${percent(now.escapes / now.defective)} (${now.escapes}), overkill ${percent(now.overkills / now.good)} (${now.overkills})`;
  byId("state").textContent = `${shown(threshold)}${rejected}`;
  byId("current").setAttribute("x1", 600 * threshold);
  byId("current").setAttribute("x2", 600 * threshold);
  tables(now);
  markers(now);
  gallery("escapes", data.defective, now.places, now.escapes);
  gallery("overkills", data.good, range(0, Math.min(now.overkills, data.good.keys.length)), now.overkills);
  if (byId("unlike")) gallery("unlike", data.unlike, range(0, data.unlike.keys.length), data.unlike.keys.length);
}

/** Take a threshold; the control it came from keeps what was put there. */
function take(value, from) {
  if (!(value >= 0 && value <= 1)) return;
  threshold = value;
  for (const control of [byId("slider"), byId("number")]) {
    if (control !== from) control.value = control.type === "range" ? value : shown(value);
  }
  byId("slider").setAttribute("aria-valuetext", shown(value));
  update();
}

byId("slider").addEventListener("input", (event) => take(Number(event.target.value), event.target));
byId("number").addEventListener("input", (event) => take(event.target.value === "" ? NaN : Number(event.target.value), event.target));
byId("reset").addEventListener("click", () => take(data.start));
byId("heat").addEventListener("change", update);
for (const button of document.querySelectorAll("button[data-step]")) {
  const id = button.closest("section").id;
  button.addEventListener("click", () => {
    pages[id] += Number(button.dataset.step);
    update();
  });
}
take(data.start);
