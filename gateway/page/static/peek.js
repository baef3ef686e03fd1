// The box beside the token that is pointed at or has the focus: how likely it was, and what else could have come.

import { $, make, visible } from "/page/dom.js";
import { likeliest, numberOf, percent } from "/page/token.js";

const GAP = 6;

/** Show it. */
export function peekAt(span, token) {
  const box = $("peek");
  const shown = likeliest(token);
  box.replaceChildren(...shown.map((each) => row(each, numberOf(each, shown), each === token)));
  const about = `token ${token.tokenId ?? 0} · log-probability ${(token.logprob ?? 0).toFixed(3)}`;
  box.append(make("p", "about", about));
  box.hidden = false;
  const [place] = span.getClientRects();
  if (!place) return unpeek();
  const { width, height } = box.getBoundingClientRect();
  const below = place.bottom + GAP + height < window.innerHeight;
  box.style.left = `${Math.max(8, Math.min(place.left, document.documentElement.clientWidth - width - 8))}px`;
  box.style.top = `${below ? place.bottom + GAP : Math.max(4, place.top - GAP - height)}px`;
}

/** Hide it. */
export function unpeek() {
  $("peek").hidden = true;
}

function row(token, number, chosen) {
  const fill = make("i");
  fill.style.width = `${100 * Math.exp(token.logprob ?? 0)}%`;
  const name = make("div", "name", make("code", "", visible(token.text ?? "")), number);
  return make("div", chosen ? "row chosen" : "row", name, make("div", "meter", fill), make("span", "number", percent(token)));
}
