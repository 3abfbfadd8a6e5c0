// Plain decoding and an accelerated method on one prompt and seed, one after the other, and what came of it.

import { $, count, make, number, rate } from "./dom.js";
import { Output } from "./text.js";

const factors = new Map(); // by request: the factors of its races so far
let races = 0;

class Lane {
  constructor(title, goal, pick) {
    this.title = title;
    this.speed = make("b", {}, "–");
    this.bar = make("progress", { max: goal, value: 0 });
    this.bar.setAttribute("aria-label", `${title}: tokens written`);
    const [box, footer] = [make("div", { className: "text" }), make("p", { className: "dim small facts" })];
    box.setAttribute("aria-label", `Text of ${title}; arrow keys go from token to token`);
    const head = make("header", {}, make("h3", {}, title), make("p", { className: "speed" }, this.speed, " tokens/s"));
    this.element = make("article", { className: "lane" }, head, this.bar, box, footer);
    this.output = new Output(box, footer, pick);
  }

  show(tokens, speed) {
    this.bar.value = tokens;
    this.speed.textContent = rate(speed);
  }
}

/**
 * Run both, in an order that alternates from race to race, and say what came of it.
 * run(method, output, onPiece): writes one text; true = it came to its end. Returns the lanes, or null if one did not.
 */
export async function race(method, goal, key, run, pick) {
  const lanes = [new Lane("Plain", goal, pick), new Lane(`Accelerated: ${method}`, goal, pick)];
  const methods = ["autoregressive", method];
  const order = races++ % 2 ? [1, 0] : [0, 1];
  $("race-view").hidden = false;
  $("replay").hidden = true;
  $("verdict").className = "verdict";
  $("factor").textContent = "";
  $("factor-unit").hidden = true;
  $("lanes").replaceChildren(...lanes.map((lane) => lane.element));
  $("race-view").scrollIntoView({ block: "nearest" });
  $("measured").textContent =
    "Measured one after the other on the same engine, so that neither slows the other; the order alternates. " +
    "The clock is this browser’s and runs from a text’s first step to its last, so that the time to read the prompt " +
    "is left out.";
  for (const i of order) {
    $("same").textContent = `${lanes[i].title} is running, ${i === order[0] ? "first" : "second"}.`;
    lanes[i].element.classList.add("running");
    const { output } = lanes[i];
    output.rewind();
    const isWhole = await run(methods[i], output, () => lanes[i].show(output.count, output.rate()));
    lanes[i].element.classList.remove("running");
    if (!isWhole) {
      $("same").textContent = "The race did not come to its end.";
      return null;
    }
    lanes[i].bar.value = lanes[i].bar.max = output.count;
  }
  judge(lanes, key);
  $("replay").hidden = false;
  $("replay").onclick = () => replay(lanes);
  return lanes;
}

function judge(lanes, key) {
  const [plain, fast] = lanes.map((lane) => lane.output);
  const factor = fast.rate() / plain.rate();
  const parted = firstDifference(plain.tokens, fast.tokens);
  for (const output of [plain, fast]) output.part(parted);
  $("verdict").className = `verdict ${parted < 0 ? "same" : "other"}`;
  $("factor").textContent = Number.isFinite(factor) ? `${number(factor, 2)}×` : "";
  $("factor-unit").hidden = !Number.isFinite(factor);
  $("same").textContent =
    parted < 0
      ? `✓ Identical texts: all ${count(plain.count, "token")} are equal.`
      : `≠ The texts part at token ${parted + 1}. A method that promises the same text may do so only where two ` +
        "tokens are nearly equal and rounding decides; other methods may change the text.";
  if (!Number.isFinite(factor)) return;
  const all = [...(factors.get(key) ?? []), factor].sort((a, b) => a - b);
  factors.set(key, all);
  if (all.length > 1) {
    const median = (all[(all.length - 1) >> 1] + all[all.length >> 1]) / 2;
    const range = `${number(all[0], 2)}× to ${number(all.at(-1), 2)}×`;
    $("measured").textContent += ` ${number(all.length)} races so far: ${range}, median ${number(median, 2)}×.`;
  }
}

/** Where two texts part, by token; -1 = they are equal. */
function firstDifference(a, b) {
  const what = (token) => token?.id ?? token?.text; // a server that gives no trace gives no ids
  for (let i = 0; i < Math.max(a.length, b.length); i += 1) {
    if (what(a[i]) !== what(b[i])) return i;
  }
  return -1;
}

/** Show both texts again, side by side, each as fast as it was measured. */
function replay(lanes) {
  $("replay").disabled = true;
  const begin = performance.now();
  const frame = () => {
    let isOver = true;
    for (const lane of lanes) {
      const { output } = lane;
      const since = performance.now() - begin + output.steps[0].at;
      const done = output.steps.filter((step) => step.at <= since);
      const tokens = done.reduce((total, step) => total + step.tokens.length, 0);
      const until = Math.min(since, output.steps.at(-1).at);
      const speed = (tokens - output.steps[0].tokens.length) / ((until - output.steps[0].at) / 1000);
      output.reveal(tokens);
      lane.show(tokens, speed);
      isOver &&= done.length === output.steps.length;
    }
    if (!isOver) return requestAnimationFrame(frame);
    $("replay").disabled = false;
    $("replay").focus();
  };
  frame();
}
