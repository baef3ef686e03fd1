// Draws what /live says. Elements stay and change, so that what is read aloud or pointed at is not torn away.

import { $, duration, fit, make, say } from "/page/dom.js";
import { phaseBar, phaseLegend, phasesOf, phaseWords } from "/page/phases.js";

const MAX_SLOTS = 96, CELLS = 240, HISTORY = 240, ROWS = 8;
const histories = new Map();
const SVG = "http://www.w3.org/2000/svg";

/** Once, before the first picture. */
export function prepare() {
  phaseLegend($("phases"));
}

export function draw(picture) {
  const tiers = picture.model_tiers;
  const cards = fit($("model-tiers"), Math.max(1, tiers.length), tierCard);
  const told = picture.tokenizer_tiers.some((tier) => tier.told);
  if (!tiers.length) fillTier(cards[0], { state: told ? "unreachable" : "not known" }, 0, 1);
  tiers.forEach((tier, index) => fillTier(cards[index], tier, index, tiers.length));
  drawOpen(picture);
  drawRecent(picture.recent.slice(-ROWS).reverse());
  const rows = fit($("tokenizers").tBodies[0], picture.tokenizer_tiers.length, () => make("tr", "", make("td"), make("td"), make("td"), make("td")));
  picture.tokenizer_tiers.forEach((tier, index) => {
    const held = tier.held ? `${tier.held} for ${duration(tier.oldest_held_s)}` : "0";
    const words = [tier.target ?? String(index + 1), tier.state.replace("_", " "), tier.told ? String(tier.running) : "–", tier.told ? held : "–"];
    words.forEach((text, column) => say(rows[index].cells[column], text));
  });
}

function tierCard() {
  const card = make("section", "card");
  const pairs = make("dl", "pairs");
  for (const name of ["running", "waiting", "steps/s", "KV in use"]) pairs.append(make("div", "", make("dt", "", name), make("dd", "", "–")));
  const chart = document.createElementNS(SVG, "svg");
  chart.setAttribute("class", "chart");
  chart.setAttribute("viewBox", `0 0 ${HISTORY} 100`);
  chart.setAttribute("preserveAspectRatio", "none");
  chart.setAttribute("role", "img");
  for (const name of ["waiting", "running"]) {
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("class", name);
    chart.append(line);
  }
  const legend = (...names) => make("ul", "legend", ...names.map(([kind, words]) => make("li", "", make("i", `swatch ${kind}`), words)));
  card.append(
    make("h3", "", make("span", "name"), make("span", "state")), pairs,
    make("p", "caption", make("span", "", "Batch and queue"), make("span", "batch")), make("div", "slots"),
    chart, legend(["running", "running"], ["waiting", "waiting"]),
    make("p", "caption", make("span", "", "KV blocks"), make("span", "scale")), make("div", "blocks"),
    legend(["used", "in use"], ["cached", "kept for reuse"], ["free", "free"]),
  );
  for (const name of ["slots", "blocks"]) card.querySelector(`.${name}`).setAttribute("role", "img");
  return card;
}

function fillTier(card, tier, index, count) {
  const part = (name) => card.querySelector(`.${name}`);
  const figures = card.querySelectorAll("dd");
  const name = `Model tier${count > 1 ? ` ${index + 1}` : ""}`;
  say(part("name"), tier.target ? `${name} · ${tier.target}` : name);
  const state = tier.paused && tier.state === "ready" ? "paused" : tier.state;
  part("state").dataset.state = state;
  say(part("state"), state);
  const known = "kv_blocks_total" in tier;
  const running = tier.running ?? 0, queued = tier.queued ?? 0;
  const past = remember(tier.epoch ?? "0", running, queued, tier.step ?? 0);
  const total = tier.kv_blocks_total ?? 0, used = tier.kv_blocks_used ?? 0, cached = tier.kv_blocks_cached ?? 0;
  const share = total ? (100 * used) / total : 0;
  const words = known ? [running, queued, past.rate, `${share && share < 10 ? share.toFixed(1) : Math.round(share)} %`] : ["–", "–", "–", "–"];
  words.forEach((text, column) => say(figures[column], String(text)));

  const most = tier.max_batch_size ?? 0;
  const each = Math.max(1, Math.ceil(most / MAX_SLOTS));
  const on = Math.ceil(running / each), waits = Math.min(MAX_SLOTS, Math.ceil(queued / each));
  const slots = fit(part("slots"), Math.ceil(most / each) + waits, () => make("i"));
  const inBatch = Math.ceil(most / each);
  for (let i = 0; i < slots.length; i++) setClass(slots[i], i < on ? "on" : i >= inBatch ? "wait" : "");
  say(part("batch"), known ? `${running} of ${most}${queued ? `, ${queued} wait with ${tier.queued_tokens} prompt tokens` : ""}` : "");
  part("slots").setAttribute("aria-label", `${running} of ${most} places of the batch taken, ${queued} waiting`);
  drawChart(card.querySelector(".chart"), past);

  const cells = Math.min(CELLS, total), size = cells ? total / cells : 1;
  const found = fit(part("blocks"), cells, () => make("i"));
  const usedCells = used ? Math.max(1, Math.round(used / size)) : 0, cachedCells = cached ? Math.max(1, Math.round(cached / size)) : 0;
  for (let i = 0; i < found.length; i++) setClass(found[i], i < usedCells ? "used" : i < usedCells + cachedCells ? "cached" : "");
  say(part("scale"), known ? `${used} + ${cached} of ${total.toLocaleString("en")}${size > 1 ? `; a square: ${size < 10 ? size.toFixed(1) : Math.round(size)}` : ""}` : "");
  part("blocks").setAttribute("aria-label", `Of ${total} blocks ${used} in use, ${cached} kept for reuse`);
}

function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

/** The last minute of a tier, and its steps a second over the last two seconds. */
function remember(epoch, running, queued, step) {
  const past = histories.get(epoch) ?? { running: [], queued: [], steps: [], rate: 0 };
  histories.set(epoch, past);
  past.running.push(running);
  past.queued.push(queued);
  past.steps.push([performance.now(), step]);
  for (const list of [past.running, past.queued]) if (list.length > HISTORY) list.shift();
  while (past.steps.length > 2 && past.steps.at(-1)[0] - past.steps[0][0] > 2000) past.steps.shift();
  const [[began, first], [now, last]] = [past.steps[0], past.steps.at(-1)];
  past.rate = now > began ? Math.round(((last - first) * 1e3) / (now - began)) : 0;
  if (histories.size > 64) histories.delete(histories.keys().next().value);
  return past;
}

function drawChart(chart, past) {
  const top = Math.max(4, ...past.running, ...past.queued);
  const line = (values) => values.map((value, i) => `${HISTORY - values.length + i},${(97 - (94 * value) / top).toFixed(1)}`).join(" ");
  chart.querySelector(".running").setAttribute("points", line(past.running));
  chart.querySelector(".waiting").setAttribute("points", line(past.queued));
  chart.setAttribute("aria-label", `The last minute: at most ${Math.max(0, ...past.running)} running, ${Math.max(0, ...past.queued)} waiting`);
}

function drawOpen(picture) {
  const open = picture.requests.slice(-ROWS);
  say($("open-short"), `${picture.gateway.open} of ${picture.gateway.max_open}`);
  $("open-none").hidden = open.length > 0;
  $("open").hidden = !open.length;
  const most = Math.max(32, ...open.map((each) => each.tokens));
  const rows = fit($("open").tBodies[0], open.length, () => make("tr", "", make("td"), make("td", "", make("div", "track", make("i"), make("span"))), make("td")));
  open.forEach((each, index) => {
    const [number, tokens, age] = rows[index].cells;
    const [bar, words] = tokens.firstElementChild.children;
    setClass(bar, each.answering ? "" : "wait");
    bar.style.width = `${each.answering ? Math.max(1, (70 * each.tokens) / most) : 4}%`;
    say(number, String(each.number));
    say(words, each.answering ? String(each.tokens) : "waits");
    say(age, duration(each.age_s));
  });
}

function drawRecent(recent) {
  $("recent-none").hidden = recent.length > 0;
  $("recent").hidden = !recent.length;
  const body = $("recent").tBodies[0];
  const numbers = recent.map((each) => each.number).join();
  if (body.dataset.numbers === numbers) return;
  body.dataset.numbers = numbers;
  const longest = Math.max(...recent.filter(timed).map((each) => each.total_s), 1e-6);
  body.replaceChildren(...recent.map((each) => {
    const well = ["stop_token", "stop_string", "length"].includes(each.reason);
    const phases = make("td", "", ...(timed(each) ? phasesShown(each, longest) : [make("span", "hint", "times not known")]));
    return make("tr", "", make("td", "", String(each.number)), phases, make("td", well ? "" : "bad", well ? String(each.completion_tokens) : each.reason.replaceAll("_", " ")), make("td", "", duration(each.total_s)));
  }));
}

/** Whether both tiers said where its time went: nobody does of a request whose caller left. */
function timed(ended) {
  return "tokenizer_s" in ended && "decode_s" in ended;
}

function phasesShown(ended, longest) {
  const told = { tokenize: ended.tokenizer_s, queue: ended.queue_s, prefill: ended.prefill_s, decode: ended.decode_s };
  const seconds = phasesOf(told, ended.total_s);
  return [phaseBar(seconds, longest), make("span", "sr", phaseWords(seconds))];
}
