// One answer as it comes: its tokens, its figures, and how it ended. Does not know how it is asked for.

import { announce, duration, make } from "/page/dom.js";
import { endOf, wordsFor } from "/page/failures.js";
import { peekAt, unpeek } from "/page/peek.js";
import { phaseBar, phaseLegend, phasesOf } from "/page/phases.js";
import { spoken } from "/page/token.js";

export class Answer {
  constructor() {
    this.text = "";
    this.element = make("article", "answer busy");
    this.element.setAttribute("aria-label", "Answer");
    this.element.setAttribute("aria-busy", "true");
    this.body = make("div", "text");
    this.element.append(this.body);
    this.chars = [];
    this.tokens = [];
    this.rendered = 0;
    this.numTokens = 0;
    this.began = performance.now();
    this.first = this.last = 0;
    this.body.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** A message of the stream. */
  take(message) {
    const delta = message.delta ?? {};
    if (delta.reasoning) this.#reason(delta.reasoning);
    for (const call of delta.toolCalls ?? []) this.#plain(`${call.name ? `\n→ ${call.name} ` : ""}${call.arguments ?? ""}`);
    if (delta.text || delta.numTokens) this.#saw();
    this.numTokens += delta.numTokens ?? 0;
    if (delta.text) {
      this.text += delta.text;
      this.chars.push(...delta.text);
    }
    if (delta.logprobs?.length) {
      this.tokens.push(...delta.logprobs);
      this.#render();
    } else if (delta.text) {
      this.tokens.length ? this.#render() : this.#plain(delta.text);
    }
    if (message.finish) this.finish = message.finish;
  }

  #saw() {
    this.last = performance.now();
    this.first ||= this.last;
  }

  #plain(text) {
    this.body.append(document.createTextNode(text));
  }

  #reason(text) {
    if (!this.reasoning) {
      this.reasoning = make("p", "reasoning");
      this.element.prepend(this.reasoning);
    }
    this.#saw();
    this.reasoning.append(document.createTextNode(text));
  }

  /** Spans from the last one on, whose text may have grown. A token without text of its own is a mark that no copy has. */
  #render() {
    const offset = (token) => token.textOffset ?? 0;
    for (let i = Math.max(0, this.rendered - 1); i < this.tokens.length; i++) {
      const token = this.tokens[i];
      const end = i + 1 < this.tokens.length ? offset(this.tokens[i + 1]) : this.chars.length;
      const text = this.chars.slice(offset(token), Math.max(end, offset(token))).join("");
      token.span ??= this.body.appendChild(this.#span(token));
      if (token.span.textContent !== text) token.span.textContent = text;
      token.span.classList.toggle("empty", !text);
    }
    this.rendered = this.tokens.length;
  }

  #span(token) {
    const span = make("span", "token");
    const tint = Math.min(9, Math.floor((1 - Math.exp(token.logprob ?? 0)) * 10));
    span.dataset.tint = String(tint);
    span.style.setProperty("--unlikely", (tint / 9).toFixed(2));
    span.tabIndex = this.body.querySelector("[tabindex='0']") ? -1 : 0;
    span.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && peekAt(span, token));
    span.addEventListener("pointerleave", unpeek);
    span.addEventListener("focus", () => {
      peekAt(span, token);
      announce(spoken(token));
    });
    span.addEventListener("blur", unpeek);
    return span;
  }

  #onKey(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    const spans = [...this.body.querySelectorAll(".token")];
    const at = spans.indexOf(document.activeElement);
    if (event.key === "Escape") unpeek();
    if (!(event.key in steps) || at < 0) return;
    event.preventDefault();
    const next = spans[Math.min(spans.length - 1, Math.max(0, at + steps[event.key]))];
    spans[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /** Nothing more comes. `stopped`: whoever asked ended it. */
  end({ stopped = false, error = null } = {}) {
    this.element.classList.remove("busy");
    this.element.setAttribute("aria-busy", "false");
    const figures = make("dl", "figures");
    const add = (name, value) => figures.append(make("div", "", make("dt", "", name), make("dd", "", value)));
    const usage = this.finish?.usage ?? {};
    const numTokens = usage.completionTokens ?? this.numTokens;
    if (this.first) add("first token", duration((this.first - this.began) / 1e3));
    if (this.first && numTokens > 1 && this.last > this.first) {
      add("tokens/s", (((numTokens - 1) * 1e3) / (this.last - this.first)).toFixed(1));
    }
    if (numTokens) add("tokens", String(numTokens));
    if (usage.promptTokens) add("prompt", `${usage.promptTokens}${usage.cachedTokens ? ` (${usage.cachedTokens} cached)` : ""}`);
    if (stopped) add("ended", "you stopped it");
    else if (this.finish) add("ended", endOf(this.finish));
    if (figures.children.length) this.element.append(figures);
    const phases = phasesIn(this.finish?.timings);
    if (phases) {
      const whole = Object.values(phases).reduce((sum, each) => sum + each, 0);
      this.element.append(phaseBar(phases, whole), phaseLegend(make("ul", "legend"), phases));
    }
    this.body.hidden = Boolean(error) && !this.body.textContent;
    if (error) this.element.append(failure(error));
    announce(error ? "" : `${stopped ? "Stopped" : "Answer"}: ${this.text.slice(0, 400)}`);
  }
}

function failure(error) {
  const { headline, said, advice } = wordsFor(error);
  const box = make("div", "failure", make("strong", "", headline), ...[said, advice].filter(Boolean).map((words) => make("p", "", words)));
  box.setAttribute("role", "alert");
  if (error.retryAfter) box.append(make("p", "", `The server asks for ${duration(error.retryAfter)} of patience.`));
  return box;
}

/** Seconds by phase; null where the server did not say. */
function phasesIn(timings) {
  const model = timings?.model, tokenizer = timings?.tokenizer;
  if (!model || !tokenizer) return null;
  const seconds = (value) => Number(value ?? 0) / 1e6;
  const told = {
    tokenize: seconds(tokenizer.queueUs) + seconds(tokenizer.tokenizeUs),
    queue: seconds(model.queueUs),
    prefill: seconds(model.prefillUs),
    decode: seconds(model.decodeUs),
  };
  return phasesOf(told, seconds(timings.gateway?.totalUs ?? tokenizer.totalUs));
}
