// One step at a time: how many tokens each made final, and the tree of drafts of the chosen one.

import { $, count, draw, make, number, visible } from "./dom.js";

let shown = null; // the output whose steps are shown

/** Show the steps of an output; `step` chooses one and opens the view, else it is the one that kept most drafts. */
export function showSteps(output, step) {
  if (shown && shown !== output) shown.select(-1);
  shown = output;
  const last = output.steps.length - 1;
  $("steps").hidden = last < 0;
  if (last < 0) return;
  $("step").max = last;
  const tokens = output.count;
  $("steps-about").textContent = `${number(last + 1)} for ${count(tokens, "token")}`;
  if (step !== undefined) {
    $("steps").open = true;
    $("step").value = step;
  } else {
    $("step").value = output.steps.reduce((best, one) => (one.accepted > best.accepted ? one : best)).number;
  }
  if ($("steps").open) choose(Number($("step").value));
}

export function hideSteps() {
  $("steps").hidden = true;
  $("step").value = 0;
  shown = null;
}

function choose(index) {
  const step = shown?.steps[index];
  if (!step) return;
  $("step").value = index;
  shown.select(index);
  $("spark").replaceChildren(spark(shown.steps, index));
  const [at, box] = [$("spark").querySelector(".now").getBoundingClientRect(), $("spark").getBoundingClientRect()];
  if (at.left < box.left || at.right > box.right) $("spark").scrollLeft += at.left - box.left - box.width / 2;
  const { title, detail } = inWords(step, shown.steps.length);
  $("step-facts").replaceChildren(make("strong", {}, title), ` ${detail}`);
  $("step").setAttribute("aria-valuetext", `${title} ${detail}`);
  $("tree").replaceChildren(tree(step, `${title} ${detail}`));
}

function inWords(step, of) {
  const title = `Step ${step.number + 1} of ${of}.`;
  const own = step.tokens.filter((token) => token.source !== "draft");
  const text = (tokens) =>
    `“${tokens
      .map((token) => token.text)
      .join("")
      .trim()}”`;
  if (!step.proposed) return { title, detail: `Nothing was drafted; the model wrote ${text(step.tokens)}.` };
  const who = step.step?.drafter || "The drafter";
  const were = step.accepted === 1 ? "was" : "were";
  const kept = `${who} drafted ${count(step.proposed, "token")}; ${step.accepted} ${were} kept`;
  const rest = own.length ? `, and the model added ${text(own)} (${own[0].source})` : "";
  return { title, detail: `${kept}${rest}.` };
}

/** Bars: tokens per step, the kept drafts solid, the model's own on top. */
function spark(steps, chosen) {
  const most = Math.max(...steps.map((step) => step.tokens.length));
  const [unit, bar, gap] = [Math.min(14, 44 / most), Math.min(18, Math.max(6, 1000 / steps.length - 2)), 2];
  const all = steps.length * (bar + gap);
  const picture = draw("svg", { viewBox: `0 0 ${all} 48`, height: 48, width: all, role: "img" });
  picture.setAttribute("aria-label", `Tokens per step: at most ${most}`);
  for (const step of steps) {
    const [x, kept, own] = [step.number * (bar + gap), step.accepted, step.tokens.length - step.accepted];
    const column = draw("g", { class: step.number === chosen ? "column now" : "column" });
    column.append(draw("rect", { class: "hit", x, y: 0, width: bar + gap, height: 48 }));
    column.append(draw("rect", { class: "kept", x, y: 46 - kept * unit, width: bar, height: kept * unit }));
    const rest = { y: 46 - (kept + own) * unit, height: Math.max(0, own * unit - 1) };
    column.append(draw("rect", { class: "own", x, width: bar, ...rest }));
    column.addEventListener("click", () => choose(step.number));
    picture.append(column);
  }
  return picture;
}

/** A step's drafts as a graph: depth to the right, branches below each other, the kept path in colour. */
function tree(step, words) {
  const { tokens = [], parents = [], texts = [] } = step.step ?? {};
  const kept = keptPath(step, tokens, parents);
  const [depth, lane, lanes] = place(parents);
  const [w, h, boxed] = [112, 34, 96];
  const x = (node) => (depth[node] + 1) * w;
  const y = (node) => (node < 0 ? 0 : lane[node] * h);
  const end = kept.at(-1) ?? -1;
  const own = step.tokens.slice(kept.length);
  const isFree = !parents.includes(end); // nothing drafted stands where the model's own token goes
  const low = isFree ? y(end) : Math.max(lanes, 1) * h;
  const reach = Math.max(...depth, (depth[end] ?? -1) + own.length) + 2;
  const size = { width: reach * w, height: Math.max(lanes * h, low + h) };
  const view = { viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": words };
  const picture = draw("svg", { ...size, ...view });
  const node = (left, top, label, kind) => {
    const short = label.length > 11 ? `${label.slice(0, 10)}…` : label;
    const box = draw("g", { class: `node ${kind}` }, draw("title", {}, label));
    box.append(draw("rect", { x: left + 1, y: top + 4, width: boxed, height: 24, rx: 6 }));
    box.append(draw("text", { x: left + 1 + boxed / 2, y: top + 20, "text-anchor": "middle" }, short));
    picture.append(box);
  };
  const link = (fromX, fromY, toX, toY, kind) => {
    const [a, b] = [fromX + boxed + 1, toX + 1];
    const middle = (a + b) / 2;
    const d = `M${a} ${fromY + 16} C${middle} ${fromY + 16} ${middle} ${toY + 16} ${b} ${toY + 16}`;
    picture.append(draw("path", { class: `link ${kind}`, d }));
  };
  const from = (parent) => [parent < 0 ? 0 : x(parent), y(parent)];
  const order = parents.map((_, i) => i).sort((a, b) => kept.includes(a) - kept.includes(b));
  const kind = (i) => (kept.includes(i) ? "kept" : "refused");
  for (const i of order) link(...from(parents[i]), x(i), y(i), kind(i));
  node(0, 0, "text so far", "root");
  parents.forEach((_, i) => node(x(i), y(i), visible(texts[i] ?? `${tokens[i]}`), kind(i)));
  let [left, top] = from(end);
  for (const token of own) {
    link(left, top, left + w, low, "kept");
    [left, top] = [left + w, low];
    node(left, top, visible(token.text), token.source);
  }
  return picture;
}

/** The nodes that were kept, from the root on: those whose tokens are the drafts that became text. */
function keptPath(step, tokens, parents) {
  const path = [];
  for (const token of step.tokens) {
    if (token.source !== "draft") break;
    const node = parents.findIndex((parent, i) => parent === (path.at(-1) ?? -1) && tokens[i] === token.id);
    if (node < 0) break;
    path.push(node);
  }
  return path;
}

/** Depth and lane of each node; a first child stays in its parent's lane. */
function place(parents) {
  const depth = [];
  const lane = [];
  let lanes = 0;
  parents.forEach((parent, i) => {
    depth[i] = parent < 0 ? 0 : depth[parent] + 1;
  });
  depth[-1] = -1;
  const settle = (node) => {
    const children = parents.map((_, i) => i).filter((i) => parents[i] === node);
    if (!children.length && node >= 0) lane[node] = lanes++;
    children.forEach(settle);
    if (children.length && node >= 0) lane[node] = lane[children[0]];
  };
  settle(-1);
  return [depth, lane, lanes];
}

/** Wire the buttons, once. */
export function startSteps() {
  $("step").addEventListener("input", () => choose(Number($("step").value)));
  $("step-back").addEventListener("click", () => choose(Number($("step").value) - 1));
  $("step-on").addEventListener("click", () => choose(Number($("step").value) + 1));
  $("steps").addEventListener("toggle", () => ($("steps").open ? choose(Number($("step").value)) : shown?.select(-1)));
}
