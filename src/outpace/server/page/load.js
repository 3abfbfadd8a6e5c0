// What the server has to do just now, asked once a second while the page can be seen.

import { $, number } from "./dom.js";
import { get } from "./stream.js";

const EVERY_MS = 1000;
const IDLE_MS = 8000; // between questions to a server that does not answer
let before = null;

function show(loads) {
  const sum = (field) => loads.reduce((total, load) => total + load[field], 0);
  const [at, written, pages] = [performance.now(), sum("written_tokens"), sum("pages")];
  $("load-running").textContent = number(sum("running"));
  $("load-waiting").textContent = number(sum("waiting"));
  const speed = before ? Math.max(0, written - before.written) / ((at - before.at) / 1000) : NaN;
  $("load-rate").textContent = number(speed);
  $("load-cache").textContent = pages ? `${number((100 * sum("pages_used")) / pages)}%` : "–";
  before = { at, written };
}

/** Ask for ever; `key` returns the key, told(isThere) hears whether the server answered. */
export async function watch(key, told) {
  for (;;) {
    let wait = EVERY_MS;
    if (!document.hidden) {
      try {
        const { models } = await get("outpace/load", key());
        show(Object.values(models));
        $("load").classList.remove("away");
        await told(true);
      } catch {
        $("load").classList.add("away");
        before = null;
        wait = IDLE_MS;
        told(false);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
