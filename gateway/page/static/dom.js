// Elements made of text. Nothing here takes markup: whatever a model or a server says is shown, never read as HTML.

/** The element of an id. */
export const $ = (id) => document.getElementById(id);

/** A new element: its class, and its children, which are elements or texts. */
export function make(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Set a text where it differs. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Have exactly so many children, made by `create` where there are too few. */
export function fit(parent, count, create) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(create());
  return parent.children;
}

/** 0.0123 as "12 ms", 3.21 as "3.2 s". */
export function duration(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${seconds < 0.01 ? (seconds * 1e3).toFixed(1) : Math.round(seconds * 1e3)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** A token's text with what cannot be seen made visible. */
export function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
}

/** Some time passes. */
export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** Tell whoever uses a screen reader, once. */
export function announce(text) {
  $("announcer").textContent = text;
}
