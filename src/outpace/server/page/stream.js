// Asking the server: one request in, pieces of text out; every failure becomes one sentence.

export class Trouble extends Error {
  /** kind: "lost" = no connection; "key" = not let in; "busy" = may go well later; "refused" = asked wrongly. */
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

const LOST = "The connection to the server was lost.";

function headers(key) {
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

/** Get JSON from the server; throws Trouble. */
export async function get(path, key) {
  let answer;
  try {
    answer = await fetch(path, { headers: headers(key), cache: "no-store" });
  } catch {
    throw new Trouble("The server does not answer.", "lost");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

/**
 * Post a request and yield what each step made final: {tokens, rest, step, finish, said, at}. `said` is what counts as
 * the answer, `at` is in milliseconds of this browser's clock. Ends early, without an error, when `signal` aborts;
 * throws Trouble.
 */
export async function* write(path, body, key, signal) {
  let isWhole = false;
  let isTraced = false;
  try {
    const answer = await fetch(path, { method: "POST", headers: headers(key), body: JSON.stringify(body), signal });
    if (!answer.ok) throw await refusal(answer);
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") {
        isWhole = true;
        continue; // to the answer's end, so that its connection serves again
      }
      const piece = read(JSON.parse(data), isTraced);
      isTraced ||= Boolean(piece?.isTraced);
      if (piece) yield piece;
    }
  } catch (error) {
    if (signal.aborted || isWhole) return;
    throw error instanceof Trouble ? error : new Trouble(LOST, "lost");
  }
  if (!isWhole && !signal.aborted) throw new Trouble(LOST, "lost");
}

/** The data of each server-sent event, in order. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let open = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (open + value).split(/\r?\n\r?\n/);
    open = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

/**
 * One chunk as a piece; null where it says nothing of the text. Its tokens are the trace's; a server that gives none
 * has its text taken for one token. A traced step may need several chunks: only the first holds its tokens.
 */
function read(chunk, isTraced) {
  if (chunk.error) throw new Trouble(sentence(chunk.error), "busy");
  const choice = chunk.choices?.[0];
  if (!choice) return null;
  const { tokens, step = null, rest = "" } = choice.outpace ?? {};
  const text = choice.text ?? choice.delta?.content ?? "";
  const plain = text && !isTraced ? [{ id: null, text, source: "plain", drafter: "", log_prob: null }] : [];
  const finish = choice.finish_reason ?? null;
  const made = { tokens: tokens ?? plain, rest, step, finish, said: text };
  return { ...made, isTraced: Boolean(tokens), at: performance.now() };
}

async function refusal(answer) {
  const said = await answer.json().catch(() => null);
  const error = said?.error ?? said?.detail ?? said;
  const message = error ? sentence(error) : `The server answered ${answer.status} ${answer.statusText}.`;
  if (answer.status === 401 || answer.status === 403) return new Trouble(message, "key");
  const wait = answer.headers.get("retry-after");
  const kind = answer.status === 429 || answer.status >= 500 ? "busy" : "refused";
  return new Trouble(wait ? `${message} It asks to wait ${wait} s.` : message, kind);
}

function sentence(error) {
  return typeof error === "string" ? error : (error.message ?? "The server reports an error that it does not name.");
}
