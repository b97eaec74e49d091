"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const nLayers = data.layers.length, nHeads = data.heads, nPrompt = data.prompt.length;
const NAMES = ["waiting, in f16", "high precision", "low precision", "evicted", "not held"];
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;

// bfloat16 in Base64.
function numbers(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const from = new DataView(bytes.buffer), bits = new Uint32Array(bytes.length / 2);
  for (let i = 0; i < bits.length; ++i) bits[i] = from.getUint16(2 * i, true) << 16;
  return new Float32Array(bits.buffer);
}

// Text that shows what else has no form: line ends, control characters, those that turn the direction, halves of characters.
function visible(text) {
  return text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]|\p{Surrogate}/gu,
    (c) => c === "\t" ? "\u21e5\t" : "\u27e8" + c.charCodeAt(0).toString(16).padStart(2, "0") + "\u27e9");
}

const runs = data.runs.map((run, index) => {
  const texts = data.prompt.concat(run.answer), n = texts.length;
  const made = { ...run, index, n, texts, chosen: nPrompt, box: byId("tokens-" + index), tokens: [], current: 0,
    scores: numbers(run.scores), received: numbers(run.received), looked: numbers(run.looked) };
  const sums = new Float64Array(nLayers * nHeads), largest = new Float64Array(nLayers * nHeads);
  for (let row = 0; row < sums.length; ++row) {
    for (let i = row * n; i < (row + 1) * n; ++i) {
      sums[row] += made.received[i];
      largest[row] = Math.max(largest[row], made.received[i]);
    }
  }
  made.sums = sums;
  made.largest = largest;
  // Over all heads: share of heads that hold a token in high precision, and the mean of its shares of importance.
  made.high = new Float64Array(n);
  made.share = new Float64Array(n);
  for (let row = 0; row < sums.length; ++row) {
    for (let i = 0; i < n; ++i) {
      made.high[i] += (run.tiers[row * n + i] === "1") / sums.length;
      if (sums[row] > 0) made.share[i] += made.received[row * n + i] / sums[row] / sums.length;
    }
  }
  made.largestShare = Math.max(...made.share);
  return made;
});

function heading(box, text) {
  const part = box.appendChild(document.createElement("span"));
  part.className = "part";
  part.role = "presentation";
  part.textContent = text;
}

function makeTokens(run) {
  run.texts.forEach((text, i) => {
    if (i === 0) heading(run.box, "Prompt");
    if (i === nPrompt) heading(run.box, "Answer");
    const token = document.createElement("span");
    token.role = "option";
    token.tabIndex = i === 0 ? 0 : -1;
    token.dataset.i = i;
    token.ariaSelected = "false";
    // A line end is a mark and an end of the line; a token without text is a part of the next one's character.
    visible(text).split("\n").forEach((line, k) => {
      if (k > 0) {
        const mark = token.appendChild(document.createElement("span"));
        mark.className = "mark";
        mark.textContent = "\u21b5";
        token.append("\n");
      }
      token.append(line);
    });
    if (text === "") token.append("\u00b7");
    run.box.append(token);
    run.tokens.push(token);
  });
}

const view = { layer: 0, head: 0, all: false, by: "tier" };

function readControls() {
  view.layer = Number(byId("layer").value);
  view.head = Number(byId("head").value);
  view.all = byId("all").checked;
  view.by = document.querySelector("input[name=by]:checked").value;
  byId("layer").disabled = view.all;
  byId("head").disabled = view.all || view.by === "looked";
  byId("layer-now").textContent = view.all ? "all" : data.layers[view.layer];
  byId("head-now").textContent = byId("head").disabled ? "all" : view.head;
  byId("layer").setAttribute("aria-valuetext", "layer " + data.layers[view.layer]);
}

const rowOf = () => view.layer * nHeads + view.head;

// Where the model looked as it wrote the chosen token: one layer, or the mean of all.
function lookedAt(run, i) {
  const nAnswer = run.answer.length, token = run.chosen - nPrompt;
  if (!view.all) return run.looked[(view.layer * nAnswer + token) * run.n + i];
  let sum = 0;
  for (let layer = 0; layer < nLayers; ++layer) sum += run.looked[(layer * nAnswer + token) * run.n + i];
  return sum / nLayers;
}

// From 0 to 1 on three powers of ten: a few tokens get most of the attention.
const onPowers = (x, most) => x > 0 && most > 0 ? Math.max(0, 1 + Math.log10(x / most) / 3) : 0;

function weightsOf(run) {
  const row = rowOf(), w = new Float64Array(run.n);
  if (view.by === "tier") return run.high;
  if (view.by === "received") {
    for (let i = 0; i < run.n; ++i) {
      w[i] = view.all ? onPowers(run.share[i], run.largestShare) : onPowers(run.received[row * run.n + i], run.largest[row]);
    }
    return w;
  }
  for (let i = 0; i < run.n; ++i) w[i] = lookedAt(run, i);
  const most = Math.max(...w);
  return w.map((x) => onPowers(x, most));
}

function draw(run) {
  const row = rowOf(), asTier = view.by === "tier" && !view.all, weights = asTier ? null : weightsOf(run);
  run.tokens.forEach((token, i) => {
    if (asTier) {
      token.className = "token t" + run.tiers[row * run.n + i];
      return;
    }
    token.className = "token ramp by-" + view.by;
    token.style.setProperty("--w", weights[i].toFixed(3));
  });
  run.tokens.forEach((token, i) => token.ariaSelected = String(i === run.chosen && view.by === "looked"));
  if (view.by === "looked") {
    byId("counts-" + run.index).textContent = `Attention as \u201c${named(run, run.chosen)}\u201d was written ` +
      `(token ${run.chosen}): ${view.all ? "mean of all layers and heads" : "mean of the layer's heads"}.`;
    return;
  }
  const counts = [0, 0, 0, 0, 0];
  const first = view.all ? 0 : row, last = view.all ? nLayers * nHeads : row + 1;
  for (let k = first * run.n; k < last * run.n; ++k) ++counts[run.tiers[k]];
  const total = (last - first) * run.n;
  byId("counts-" + run.index).textContent = (view.all ? "All heads: " : "This head: ") + counts.map((count, tier) => count &&
    (100 * count / total).toFixed(count === total ? 0 : 1) + " % " + NAMES[tier]).filter(Boolean).join(", ") + ".";
}

// All tokens of all heads: a line for each head, the chosen one marked at both ends.
function drawMap(run) {
  const canvas = byId("map-" + run.index), pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colours = ["--staged", "--hi", "--lo", "--paper", "--paper"].map((name) => style.getPropertyValue(name));
  for (let row = 0; row < nLayers * nHeads; ++row) {
    for (let i = 0, end; i < run.n; i = end) {
      const tier = run.tiers[row * run.n + i];
      for (end = i + 1; end < run.n && run.tiers[row * run.n + end] === tier; ++end);
      pen.fillStyle = colours[tier];
      pen.fillRect(i, row, end - i, 1);
    }
  }
  if (view.all) return;
  pen.fillStyle = style.getPropertyValue("--focus");
  const ends = Math.max(1, Math.round(run.n / 60)), only = view.by !== "looked";
  const first = only ? rowOf() - 1 : view.layer * nHeads, lines = only ? 3 : nHeads;
  for (const at of [0, run.n - ends]) pen.fillRect(at, first, ends, lines);
}

function drawLegend() {
  const legend = byId("legend");
  legend.textContent = "";
  const add = (name, className, text) => {
    const part = legend.appendChild(document.createElement(name));
    part.className = className;
    part.textContent = text;
  };
  if (view.by === "tier" && !view.all) {
    NAMES.forEach((name, tier) => runs.some((run) => run.tiers.includes(tier)) && add("span", "key t" + tier, name));
    return;
  }
  const ends = { tier: ["0 % of heads hold it in high precision", "100 %"],
    received: ["0.1 % of the largest importance or less", "the largest, by powers of ten"],
    looked: ["0.1 % of the largest attention or less", "the largest, by powers of ten. Click a token of the answer, or press Enter on it."] }[view.by];
  legend.append(ends[0]);
  add("span", "ramp by-" + view.by, "");
  legend.append(ends[1]);
}

function drawAll() {
  readControls();
  drawLegend();
  runs.forEach(draw);
  runs.forEach(drawMap);
  if (shown) show(shown.run, shown.i, shown.keyboard);
}

const digits = (x) => x === 0 ? "0" : x >= 1e38 ? "above all" : x >= 1e6 || x < 1e-6 ? x.toExponential(1)
  : x >= 100 ? x.toFixed(0) : Number(x.toPrecision(2)).toString();
const named = (run, i) => visible(run.texts[i]).replace(/\n/g, "\u21b5");
const percent = (x) => digits(100 * x) + " %";

function describe(run, i) {
  const row = rowOf(), k = row * run.n + i, tier = Number(run.tiers[k]), text = run.texts[i];
  const lines = [`Token ${i}${i < nPrompt ? "" : " (answer)"}: ` +
    (text === "" ? "a part of the next character" : `\u201c${named(run, i)}\u201d`)];
  if (view.all) {
    lines.push(`${percent(run.high[i])} of ${nLayers * nHeads} heads hold it in high precision`);
    lines.push(`importance: ${percent(run.share[i])} of a head's sum in the mean`);
  } else {
    lines.push(`layer ${data.layers[view.layer]}, KV head ${view.head}: ${NAMES[tier]}`);
    lines.push(`importance ${digits(run.received[k])}, ${percent(run.sums[row] > 0 ? run.received[k] / run.sums[row] : 0)} of the head's sum`);
    lines.push(tier === 1 && run.scores[k] > 0 ? `score ${digits(run.scores[k])}` : "no score kept");
    lines.push(`high in ${percent(run.high[i])} of ${nLayers * nHeads} heads`);
  }
  if (view.by === "looked") {
    const chosen = named(run, run.chosen);
    lines.push(i < run.chosen ? `attention from \u201c${chosen}\u201d: ${percent(lookedAt(run, i))}` : `not there yet when \u201c${chosen}\u201d was written`);
  }
  return lines.join("\n");
}

let shown = null;

function show(run, i, keyboard) {
  hide();
  shown = { run, i, keyboard };
  const token = run.tokens[i];
  tip.textContent = describe(run, i);
  tip.hidden = false;
  if (keyboard) token.ariaLabel = tip.textContent;
  const at = token.getClientRects()[0] || token.getBoundingClientRect(), box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(at.left, innerWidth - box.width - 8)) + "px";
  tip.style.top = (at.bottom + box.height + 8 > innerHeight ? Math.max(8, at.top - box.height - 4) : at.bottom + 4) + "px";
  runs.forEach((other) => other !== run && i < Math.min(nPrompt, other.n) && other.tokens[i].classList.add("same"));
}

function hide() {
  tip.hidden = true;
  if (!shown) return;
  shown.run.tokens[shown.i].removeAttribute("aria-label");
  for (const same of document.querySelectorAll(".same")) same.classList.remove("same");
  shown = null;
}

function focus(run, i) {
  i = Math.max(0, Math.min(run.n - 1, i));
  run.tokens[run.current].tabIndex = -1;
  run.current = i;
  run.tokens[i].tabIndex = 0;
  run.tokens[i].focus();
  show(run, i, true);
}

// The token of the line above or below that is nearest.
function beside(run, i, direction) {
  const from = run.tokens[i].getClientRects()[0];
  let best = i, least = Infinity, line = null;
  for (let k = i + direction; k >= 0 && k < run.n; k += direction) {
    const at = run.tokens[k].getClientRects()[0];
    if (!at || Math.abs(at.top - from.top) < at.height / 2) continue;
    if (line === null) line = at.top;
    if (Math.abs(at.top - line) >= at.height / 2) break;
    const distance = Math.abs(at.left - from.left);
    if (distance < least) [best, least] = [k, distance];
  }
  return best;
}

function choose(run, i) {
  if (i < nPrompt) return;
  run.chosen = i;
  draw(run);
}

runs.forEach((run) => {
  makeTokens(run);
  const indexOf = (event) => {
    const token = event.target.closest && event.target.closest(".token");
    return token ? Number(token.dataset.i) : -1;
  };
  run.box.addEventListener("mousemove", (event) => {
    if (event.movementX === 0 && event.movementY === 0) return;  // the page moved, not the mouse
    const i = indexOf(event);
    if (i < 0) hide();
    else if (!shown || shown.run !== run || shown.i !== i) show(run, i, false);
  });
  run.box.addEventListener("mouseleave", () => shown && !shown.keyboard && hide());
  run.box.addEventListener("focusin", (event) => indexOf(event) >= 0 && show(run, indexOf(event), true));
  run.box.addEventListener("focusout", hide);
  run.box.addEventListener("click", (event) => {
    const i = indexOf(event);
    if (i < 0) return;
    choose(run, i);
    focus(run, i);
  });
  byId("map-" + run.index).addEventListener("click", (event) => {
    const share = event.offsetY / event.target.clientHeight;
    const row = Math.max(0, Math.min(nLayers * nHeads - 1, Math.floor(share * nLayers * nHeads)));
    byId("layer").value = Math.floor(row / nHeads);
    byId("head").value = row % nHeads;
    byId("all").checked = false;
    drawAll();
  });
  run.box.addEventListener("keydown", (event) => {
    const i = run.current;
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: run.n - 1, PageDown: i + 50, PageUp: i - 50 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (to !== undefined) focus(run, to);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") focus(run, beside(run, i, event.key === "ArrowDown" ? 1 : -1));
    else if (event.key === "Enter" || event.key === " ") {
      choose(run, i);
      show(run, i, true);
    } else if (event.key === "Escape") hide();
    else return;
    event.preventDefault();
  });
});
byId("controls").addEventListener("input", drawAll);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("scroll", () => shown && !shown.keyboard && hide(), { passive: true });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
