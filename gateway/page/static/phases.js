// Where the time of a request went: seconds by phase, as a bar, a legend and words.

import { duration, make } from "/page/dom.js";

const PHASES = [
  ["tokenize", "tokenizer tier"],
  ["queue", "waiting for a step"],
  ["prefill", "reading the prompt"],
  ["decode", "generating"],
  ["rest", "on the way"],
];

/** Seconds by phase: what the tiers said, and the rest of `whole`. */
export function phasesOf(told, whole) {
  const known = Object.values(told).reduce((sum, each) => sum + each, 0);
  return { ...told, rest: Math.max(0, whole - known) };
}

/** A bar of phases, as parts of `whole` seconds. */
export function phaseBar(seconds, whole) {
  const bar = make("div", "phases");
  bar.setAttribute("aria-hidden", "true");
  for (const [name] of PHASES) {
    if (!(seconds[name] > 0)) continue;
    const part = make("i", name);
    part.style.width = `${(100 * seconds[name]) / whole}%`;
    bar.append(part);
  }
  return bar;
}

/** Its legend, with times where they are given. */
export function phaseLegend(list, seconds) {
  list.replaceChildren();
  for (const [name, words] of PHASES) {
    if (seconds && !(seconds[name] > 0)) continue;
    list.append(make("li", "", make("i", name), seconds ? `${words} ${duration(seconds[name])}` : words));
  }
  return list;
}

/** The same to be read aloud. */
export function phaseWords(seconds) {
  return PHASES.filter(([name]) => seconds[name] > 0).map(([name, words]) => `${words} ${duration(seconds[name])}`).join(", ");
}
