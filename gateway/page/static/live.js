// Follows /live while somebody can see it: not in a hidden tab, not behind the chat on a narrow screen, not while paused.

import { authorization, CallError, errorIn, errorOf } from "/page/connect.js";
import { $, say } from "/page/dom.js";
import { lineFor } from "/page/failures.js";
import { draw, prepare } from "/page/picture.js";
import { Invalid, key } from "/page/settings.js";

const SOON_MS = 2000, SELDOM_MS = 30_000;
const SILENT_MS = 5000; // four pictures a second are sent
const ENDS = { admin_only: "permission_denied", too_many_viewers: "resource_exhausted" };
const LASTING = ["unauthenticated", "permission_denied", "not_found"];

class Watch {
  #controller = null;
  #timer = 0;
  #paused = false;

  start() {
    prepare();
    document.addEventListener("visibilitychange", () => this.look());
    window.matchMedia("(max-width: 62rem)").addEventListener("change", () => this.look());
    $("live-pause").addEventListener("click", () => {
      this.#paused = !this.#paused;
      $("live-pause").setAttribute("aria-pressed", String(this.#paused));
      this.look();
    });
    this.look();
  }

  /** Another key may be let in. */
  again() {
    this.#end();
    this.look();
  }

  /** Begin or end, as can be seen now. */
  look() {
    const seen = document.visibilityState === "visible" && $("live").checkVisibility() && !this.#paused;
    if (seen && !this.#controller) this.#follow();
    if (!seen) this.#end();
    if (this.#paused) state("paused", "paused");
  }

  #end() {
    clearTimeout(this.#timer);
    this.#controller?.abort();
    this.#controller = null;
  }

  async #follow() {
    clearTimeout(this.#timer);
    const controller = (this.#controller = new AbortController());
    let error;
    try {
      error = await read(key(), controller.signal);
    } catch (raised) {
      error = raised instanceof Invalid ? raised : new CallError("unreachable", "nothing comes from it");
    }
    if (controller.signal.aborted) return;
    controller.abort();
    this.#controller = null;
    if (error) missing(error);
    else state("off", "connecting");
    if (!(error instanceof Invalid)) this.#timer = setTimeout(() => this.look(), LASTING.includes(error?.code) ? SELDOM_MS : SOON_MS);
  }
}

/** Say why nothing is shown. */
function missing(error) {
  state("off", error.code === "unreachable" ? "out of reach" : "not shown");
  $("live-body").hidden = true;
  $("live-hint").hidden = false;
  say($("live-hint"), hintFor(error));
}

function hintFor(error) {
  if (error instanceof Invalid) return error.message;
  if (error.reason === "NO_CREDENTIALS") return "Shown to callers whose key has admin rights: enter one in the settings.";
  if (error.code === "permission_denied") return "Shown to callers whose key has admin rights; this one has none.";
  return error.code === "not_found" ? "This server does not show it." : lineFor(error);
}

function state(name, words) {
  $("live-state").dataset.state = name;
  say($("live-state"), words);
}

/** What is promised, within a few seconds. Raises where it does not come. */
async function soon(promise) {
  let timer;
  const silence = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("silent")), SILENT_MS)));
  try {
    return await Promise.race([promise, silence]);
  } finally {
    clearTimeout(timer);
  }
}

/** Pictures until there are no more; the error that ended them, where one did. Raises where they stop coming. */
async function read(given, signal) {
  const response = await soon(fetch("/live", { headers: authorization(given), signal, cache: "no-store", credentials: "omit" }));
  if (!response.ok) return errorOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await soon(reader.read());
    if (done) return null;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    const last = events.at(-1);
    if (!last?.startsWith("data: ")) continue;
    const picture = JSON.parse(last.slice(6));
    if (picture.error) return errorIn(picture, ENDS[picture.error.code] ?? "unauthenticated");
    state("live", "live");
    $("live-body").hidden = false;
    $("live-hint").hidden = true;
    draw(picture);
  }
}

export const watch = new Watch();
