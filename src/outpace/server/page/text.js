// Written text, token by token: where each came from, and what its step did.

import { $, count, make, number, rate, visible } from "./dom.js";

const drafters = []; // names in the order in which they were met: a drafter keeps its colour while the page is open

const KINDS = {
  plain: "the model’s own, one per step",
  recovered: "the model’s own, where a draft was refused",
  bonus: "the model’s own, behind drafts that were all kept",
};

/** How a token is marked: its kind, and of a draft also who drafted it. */
function mark(token) {
  if (token.source !== "draft") return token.source in KINDS ? token.source : "plain";
  const name = token.drafter || "the drafter";
  if (!drafters.includes(name)) drafters.push(name);
  return `draft d${drafters.indexOf(name) % 3}`;
}

/** What a token's tooltip says, in lines. */
function facts(token) {
  const origin = token.source === "draft" ? `drafted by ${token.drafter || "the drafter"}` : token.source;
  const lines = [`“${visible(token.text)}”, ${origin}`, `step ${token.step + 1}`];
  if (token.log_prob != null) {
    lines[1] += `, log-probability ${number(token.log_prob, 3)} (${number(100 * Math.exp(token.log_prob), 1)}%)`;
  }
  return lines;
}

/** One text while it is written, and after. */
export class Output {
  /** box: where the text goes; footer: where its figures go; pick(output, step): shows steps; null = there are none. */
  constructor(box, footer, pick) {
    Object.assign(this, { box, footer, pick, tokens: [] });
    this.rewind();
    box.tabIndex = 0;
    box.role = "group";
    box.dir = "auto";
    box.addEventListener("keydown", (event) => this.#walk(event));
    box.addEventListener("pointerover", (event) => this.#point(event.target));
    box.addEventListener("pointerleave", () => this.#leave());
    box.addEventListener("focusout", () => this.#leave());
    box.addEventListener("click", (event) => this.#choose(event.target));
  }

  /** It is asked now, perhaps again: the same seed writes the same tokens, so those that are here stay. */
  rewind() {
    Object.assign(this, { steps: [], begun: performance.now(), finish: null, next: 0 });
  }

  add(piece) {
    const step = this.steps.length;
    for (const token of piece.tokens) this.#put({ ...token, step });
    const last = this.tokens[this.next - 1];
    if (piece.rest && last) last.element.textContent = last.text += piece.rest; // behind an open end of the text
    if (piece.tokens.length) this.steps.push({ ...piece, ...shape(piece), number: step });
    this.finish = piece.finish ?? this.finish;
    this.tell();
  }

  /** Tokens per second from the first step's end on; `until`: a time in place of the last step's. */
  rate(until) {
    if (this.steps.length < 2) return NaN;
    const [first, last] = [this.steps[0], this.steps.at(-1)];
    return (this.count - first.tokens.length) / (((until ?? last.at) - first.at) / 1000);
  }

  /** Tokens written since it was asked, those kept from before a lost connection apart. */
  get count() {
    return this.next;
  }

  tell() {
    if (!this.steps.length) return;
    const sum = (name) => this.steps.reduce((total, step) => total + step[name], 0);
    const drafted = sum("proposed");
    const lines = [`${rate(this.rate())} tokens/s`, count(this.count, "token")];
    if (this.pick) {
      lines[1] += ` in ${count(this.steps.length, "step")}`;
      lines.push(`${number(this.count / this.steps.length, 2)} per step`);
    }
    if (this.pick && drafted) lines.push(`${number(sum("accepted"))} of ${count(drafted, "draft")} kept`);
    lines.push(`first after ${number(this.steps[0].at - this.begun)} ms`);
    if (this.finish === "length") lines.push("ended by the number of tokens");
    this.footer.textContent = lines.join(" · ");
  }

  /** Mark the first token that differs from another text's, and the rest as beyond it. */
  part(index) {
    this.tokens.forEach((token, i) => token.element.classList.toggle("parted", index >= 0 && i >= index));
  }

  /** Show only the first tokens: a replay. */
  reveal(until) {
    this.tokens.forEach((token, i) => token.element.classList.toggle("later", i >= until));
  }

  select(step) {
    for (const token of this.tokens) token.element.classList.toggle("now", token.step === step);
  }

  #put(token) {
    const old = this.tokens[this.next];
    if (old && old.id !== token.id) this.tokens.splice(this.next).forEach((gone) => gone.element.remove());
    const element = this.tokens[this.next]?.element ?? make("span", { tabIndex: -1 });
    element.textContent = token.text;
    element.className = `t ${mark(token)}`;
    element.dataset.index = this.next;
    if (!element.isConnected) this.box.append(element);
    this.tokens[this.next] = { ...token, element };
    this.next += 1;
  }

  #token(target) {
    const index = target instanceof Element ? target.closest(".t")?.dataset.index : undefined;
    return index === undefined ? null : this.tokens[index];
  }

  #point(target) {
    const token = this.#token(target);
    if (!token) return this.#leave();
    for (const other of this.tokens) other.element.classList.toggle("mate", other.step === token.step);
    showTip(token);
  }

  #leave() {
    for (const token of this.tokens) token.element.classList.remove("mate");
    $("tip").hidden = true;
  }

  #choose(target) {
    const token = this.#token(target);
    if (token) this.pick?.(this, token.step);
  }

  /** Arrow keys go from token to token, Home and End to the ends; Enter shows the step. */
  #walk(event) {
    const at = Number(this.#token(document.activeElement)?.element.dataset.index ?? -1);
    const seen = this.tokens.map((token, i) => (token.text ? i : -1)).filter((i) => i >= 0);
    const to = {
      ArrowRight: seen.find((i) => i > at),
      ArrowLeft: seen.findLast((i) => i < at),
      Home: seen[0],
      End: seen.at(-1),
    }[event.key];
    if (event.key === "Enter") this.#choose(document.activeElement);
    if (to === undefined) return;
    event.preventDefault();
    this.tokens[to].element.focus();
    this.#point(this.tokens[to].element);
  }
}

/** What a step proposed and what of it was kept; without a trace, as far as its tokens tell. */
function shape(piece) {
  const accepted = piece.tokens.filter((token) => token.source === "draft").length;
  return { accepted, proposed: Math.max(accepted, piece.step?.proposed ?? 0) };
}

function showTip(token) {
  const tip = $("tip");
  tip.replaceChildren(...facts(token).map((line) => make("div", {}, line)));
  tip.hidden = false;
  token.element.setAttribute("aria-describedby", "tip");
  const at = token.element.getClientRects()[0] ?? token.element.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left), document.documentElement.clientWidth - width - 8);
  const above = at.top - height - 8;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : at.bottom + 8) + scrollY}px`;
}

/** Say in the legend what marks the tokens of these texts. */
export function explain(outputs) {
  const marks = new Map();
  for (const token of outputs.flatMap((output) => output.tokens)) {
    const kind = mark(token);
    if (!marks.has(kind)) marks.set(kind, token.source === "draft" ? `drafted by ${token.drafter}` : token.source);
  }
  const order = ["plain", "draft d0", "draft d1", "draft d2", "recovered", "bonus"];
  const entries = [...marks].sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  $("legend").replaceChildren(
    ...entries.map(([kind, name]) =>
      make("li", {}, make("span", { className: `t ${kind}` }, name), KINDS[kind] ? ` ${KINDS[kind]}` : ""),
    ),
  );
  $("legend").hidden = !entries.length;
}
