// The page: what is asked, what is written, and who said what in a conversation.

import { $, count, make, oncePerFrame, rate } from "./dom.js";
import { watch } from "./load.js";
import { race } from "./race.js";
import { hideSteps, showSteps, startSteps } from "./steps.js";
import { get, write } from "./stream.js";
import { explain, Output } from "./text.js";

const THEMES = { system: "as the system", light: "light", dark: "dark" };
let facts = { models: [], methods: [] };
let messages = []; // of the conversation, as the server takes them
let running = null; // the AbortController of what is being written
let again = null; // what "Try again" does

const model = () => facts.models.find((one) => one.name === $("model").value);
const isChat = () => Boolean(model()?.has_chat) && $("ask").elements.kind.value === "chat";

// Settings and models

async function meet() {
  try {
    const models = await get("v1/models", $("key").value);
    const methods = await get(new URL("methods.json", import.meta.url));
    facts = { models: models.data.map(({ id, outpace = {} }) => ({ name: id, ...outpace })), methods };
  } catch (trouble) {
    complain(trouble, meet);
    return;
  }
  $("model").replaceChildren(...facts.models.map(({ name }) => make("option", { value: name }, name)));
  $("model").disabled = facts.models.length < 2;
  changeModel();
}

function changeModel() {
  const { has_chat = false, is_canvas = false } = model() ?? {};
  $("form-kind").hidden = !has_chat;
  const fitting = facts.methods.filter((method) => method.is_canvas === is_canvas);
  const group = (label, kept) => {
    const options = fitting.filter(kept).map(({ name }) => make("option", { value: name }, nameOf(name)));
    return options.length ? [make("optgroup", { label }, ...options)] : [];
  };
  const isExact = ({ guarantee }) => guarantee === "exact";
  $("method").replaceChildren(
    ...group("The same text", isExact),
    ...group("May change the text", (method) => !isExact(method)),
  );
  $("method").value = is_canvas ? "masked-diffusion" : "auto";
  $("log-probs-box").hidden = is_canvas; // what is filled in any order has none
  changeKind();
}

function changeKind() {
  $("system-box").hidden = !isChat();
  $("prompt-label").textContent = isChat() ? "Message" : "Prompt";
  $("prompt").placeholder = isChat() ? "Say something" : "Once upon a time";
  fresh();
  changeMethod();
}

function changeMethod() {
  $("method-note").textContent = facts.methods.find(({ name }) => name === $("method").value)?.summary ?? "";
  $("race").disabled = running !== null || Boolean(model()?.is_canvas);
}

const nameOf = (method) => (method === "autoregressive" ? "plain" : method);

function request(method, prompt) {
  const number = (id) => Number($(id).value);
  const asked = isChat()
    ? {
        messages: [
          ...($("system").value ? [{ role: "system", content: $("system").value }] : []),
          ...messages,
          { role: "user", content: prompt },
        ],
      }
    : { prompt };
  return {
    model: $("model").value,
    ...asked,
    max_tokens: number("max-tokens"),
    temperature: number("temperature"),
    top_p: number("top-p"),
    seed: number("seed"),
    stream: true,
    outpace: { method, trace: true },
  };
}

// Writing

/** Write one text into an output; true = it came to its end. */
async function run(body, output, onPiece) {
  const path = isChat() ? "v1/chat/completions" : "v1/completions";
  running = new AbortController();
  busy(true);
  try {
    for await (const piece of write(path, body, $("key").value, running.signal)) {
      output.add(piece);
      onPiece(piece);
    }
    if (running.signal.aborted) say(`Stopped after ${count(output.count, "token")}.`);
    return !running.signal.aborted;
  } finally {
    running = null;
    busy(false);
  }
}

function busy(isBusy) {
  for (const id of ["write", "model", "method"]) $(id).disabled = isBusy;
  $("stop").disabled = !isBusy;
  $("race").disabled = isBusy || Boolean(model()?.is_canvas);
  $("model").disabled ||= facts.models.length < 2;
  $("text-view").setAttribute("aria-busy", isBusy);
}

async function answer() {
  const prompt = $("prompt").value;
  const body = request($("method").value, prompt);
  if ($("log-probs").checked && !model()?.is_canvas)
    Object.assign(body, isChat() ? { logprobs: true } : { logprobs: 1 });
  const output = place(prompt);
  const chat = isChat();
  const show = () => {
    explain([output]);
    output.pick?.(output);
  };
  const showSoon = oncePerFrame(() => running && show());
  const attempt = async () => {
    quiet();
    output.rewind();
    const speak = speaker();
    let said = "";
    try {
      const isWhole = await run(body, output, (piece) => {
        said += piece.said;
        showSoon();
        for (const token of piece.tokens) speak(token.text);
        follow(output);
      });
      show();
      if (isWhole) {
        speak("", true);
        say(`Done: ${count(output.count, "token")}, ${rate(output.rate())} per second.`);
      }
      if (chat && output.count) turn(prompt, said);
    } catch (trouble) {
      complain(trouble, attempt, output.tokens.length);
      if (trouble.kind === "refused") output.box.parentElement.remove();
    }
  };
  await attempt();
}

/** Put up the place for a text, below its prompt. */
function place(prompt) {
  $("race-view").hidden = true;
  $("text-view").hidden = false;
  const [box, footer] = [make("div", { className: "text" }), make("p", { className: "dim small facts" })];
  box.setAttribute("aria-label", "Written text; arrow keys go from token to token");
  const article = make("article", {}, box, footer);
  if (isChat()) {
    article.prepend(make("p", { className: "asked" }, prompt));
    $("thread").append(article);
  } else {
    box.append(make("span", { className: "dim" }, prompt));
    $("thread").replaceChildren(article);
  }
  hideSteps();
  article.scrollIntoView({ block: "nearest" });
  return new Output(box, footer, model()?.is_canvas ? null : showSteps); // a canvas is filled without trees of drafts
}

/** Keep the end of what is written in view, unless the reader has gone elsewhere. */
function follow(output) {
  const { bottom } = output.footer.getBoundingClientRect();
  if (bottom > innerHeight && bottom < innerHeight + 100) output.footer.scrollIntoView({ block: "nearest" });
}

/** An answer is there: it belongs to the conversation, and what is said next stands below it. */
function turn(prompt, said) {
  messages.push({ role: "user", content: prompt }, { role: "assistant", content: said });
  $("fresh").hidden = false;
  moveForm(true);
  $("prompt").value = "";
  $("prompt").focus();
}

/** Below what was said, or above everything else. */
function moveForm(isBelow) {
  if (isBelow) $("steps").before($("ask"));
  else $("notice").before($("ask"));
}

function fresh() {
  moveForm(false);
  messages = [];
  $("thread").replaceChildren();
  $("text-view").hidden = $("race-view").hidden = $("legend").hidden = $("fresh").hidden = true;
  hideSteps();
  quiet();
}

async function compete() {
  const prompt = $("prompt").value;
  const method = $("method").value === "autoregressive" ? "auto" : $("method").value;
  quiet();
  hideSteps();
  moveForm(false);
  $("text-view").hidden = true;
  const asked = request(method, prompt);
  const write = (one, output, onPiece) => run(request(one, prompt), output, onPiece);
  try {
    const lanes = await race(method, asked.max_tokens, JSON.stringify(asked), write, showSteps);
    if (!lanes) return;
    if (messages.length && isChat()) $("measured").textContent += " The conversation so far is part of the prompt.";
    explain(lanes.map((lane) => lane.output));
    showSteps(lanes[1].output);
    say(`${$("factor").textContent} ${$("same").textContent}`);
  } catch (trouble) {
    $("same").textContent = "The race did not come to its end.";
    complain(trouble, compete);
  }
}

// Saying how things stand

/** Read text aloud in whole sentences, so that a screen reader is not given every token by itself. */
function speaker() {
  let open = "";
  $("spoken").replaceChildren();
  return (text, isLast = false) => {
    open += text;
    const end = isLast ? open.length : open.search(/[.!?…:;\n]\s+\S*$/) + 1;
    if (end <= 0) return;
    $("spoken").append(make("span", {}, open.slice(0, end)));
    open = open.slice(end);
  };
}

const say = (text) => ($("status").textContent = text);

function complain(trouble, retry, written = 0) {
  const kept = `What was written stays (${count(written, "token")}); “Try again” goes on with the same seed.`;
  $("notice-text").textContent = trouble.kind === "lost" && written ? `${trouble.message} ${kept}` : trouble.message;
  $("notice").hidden = false;
  $("retry").hidden = trouble.kind === "refused";
  again = retry;
  if (trouble.kind !== "key") return;
  $("more").open = true;
  $("key").focus();
}

function quiet() {
  $("notice").hidden = true;
  say("");
  again = null;
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[name]}`);
  $("theme").title = `Colours: ${THEMES[name]}`;
  try {
    localStorage.setItem("outpace-theme", name);
  } catch {
    // a browser that keeps nothing: the choice lasts as long as the page
  }
}

function stored() {
  try {
    const name = localStorage.getItem("outpace-theme");
    return name in THEMES ? name : "system";
  } catch {
    return "system";
  }
}

/** Run a deed if nothing is being written and the form's values are in order. */
const unless = (deed) => () => {
  if (!running && $("ask").reportValidity()) deed();
};

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  unless(answer)();
});
$("race").addEventListener("click", unless(compete));
$("stop").addEventListener("click", () => running?.abort());
$("more").addEventListener("invalid", () => ($("more").open = true), true); // else it could not be pointed at
$("fresh").addEventListener("click", fresh);
$("retry").addEventListener("click", () => again?.());
$("model").addEventListener("change", changeModel);
$("method").addEventListener("change", changeMethod);
$("form-kind").addEventListener("change", changeKind);
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});

theme(stored());
startSteps();
await meet();
watch(
  () => $("key").value,
  (isThere) => isThere && !facts.models.length && meet(),
);
