// A token and its alternatives in words. Knows no page.

import { visible } from "/page/dom.js";

/** The token and its alternatives, likeliest first. */
export function likeliest(token) {
  return [token, ...others(token)].sort((a, b) => (b.logprob ?? 0) - (a.logprob ?? 0));
}

/** What tells a token from those it is shown with, where its text does not: its number. Else empty. */
export function numberOf(token, shown) {
  const text = token.text ?? "";
  const alone = text && !text.includes("\ufffd") && shown.every((each) => each === token || each.text !== text);
  return alone ? "" : `#${token.tokenId ?? 0}`;
}

/** Its probability in percent. */
export function percent(token) {
  const share = Math.exp(token.logprob ?? 0);
  return share >= 0.9995 ? "100 %" : `${(100 * share).toFixed(1)} %`;
}

/** The token and what could have stood there instead, to be read aloud. */
export function spoken(token) {
  const shown = [token, ...others(token).slice(0, 3)];
  const [first, ...rest] = shown.map((each) => {
    const number = numberOf(each, shown);
    return `“${visible(each.text ?? "")}”${number && ` token ${number.slice(1)}`} ${percent(each)}`;
  });
  return `${first}${rest.length ? `; instead: ${rest.join(", ")}` : ""}`;
}

function others(token) {
  return (token.top ?? []).filter((each) => each.tokenId !== token.tokenId);
}
