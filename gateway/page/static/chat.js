// The conversation: asks, streams, stops, tries again.

import { Answer } from "/page/answer.js";
import { CallError, stream } from "/page/connect.js";
import { $, announce, make } from "/page/dom.js";
import { refuse, tell } from "/page/notice.js";
import { key, request } from "/page/settings.js";

let messages = [];
let running = null;

/** Whether an answer is coming. */
export const busy = () => running !== null;

/** Take what stands in the field and ask. */
export function send() {
  const text = $("prompt").value;
  if (busy() || !text.trim()) return;
  const sent = [...messages, { role: "user", content: text }];
  const call = prepared(sent);
  if (!call) return;
  $("prompt").value = "";
  $("empty").hidden = true;
  $("messages").append(make("li", "", make("div", "said", make("span", "sr", "You: "), text)));
  messages = sent;
  answer(call);
}

/** What is sent for these messages, and with which key; null where a setting cannot be sent, which has the focus then. */
function prepared(asked) {
  try {
    return { body: request(asked), given: key() };
  } catch (error) {
    refuse(error);
    error.field.focus();
    return null;
  }
}

async function answer({ body, given }) {
  const found = new Answer();
  const item = make("li", "", found.element);
  $("messages").append(item);
  running = new AbortController();
  tell("");
  buttons();
  toEnd();
  announce("Asking …");
  const asked = messages;
  let end = {};
  try {
    for await (const message of stream("Chat", body, given, running.signal)) {
      const near = atEnd();
      found.take(message);
      if (near) toEnd();
    }
  } catch (error) {
    if (error.name === "AbortError") end = { stopped: true };
    else end = { error: error instanceof CallError ? error : new CallError("internal", String(error)) };
  }
  running = null;
  const near = atEnd();
  found.end(end);
  if (messages === asked) {
    // A question without an answer is no part of what is asked next.
    messages = found.text ? [...asked, { role: "assistant", content: found.text }] : asked.slice(0, -1);
    actions(found, item, asked);
  }
  buttons();
  if (near) toEnd();
}

/** What can be done with the last answer. */
function actions(found, item, asked) {
  for (const old of document.querySelectorAll(".actions")) old.remove();
  const again = make("button", "", "Try again");
  again.type = "button";
  again.addEventListener("click", () => {
    if (busy()) return;
    const call = prepared(asked);
    if (!call) return;
    item.remove();
    messages = asked;
    $("prompt").focus();
    answer(call);
  });
  found.element.append(make("div", "actions", again));
  if (found.element.querySelector(".failure")) again.classList.add("primary");
}

const atEnd = () => $("conversation").scrollHeight - $("conversation").scrollTop - $("conversation").clientHeight < 60;
const toEnd = () => ($("conversation").scrollTop = $("conversation").scrollHeight);

function buttons() {
  const stopHadFocus = document.activeElement === $("stop-button");
  const sendHadFocus = document.activeElement === $("send");
  $("send").hidden = busy();
  $("stop-button").hidden = !busy();
  if (sendHadFocus && busy()) $("stop-button").focus();
  if (stopHadFocus && !busy()) $("prompt").focus();
}

/** End what is coming, here and in all tiers. */
export function stop() {
  running?.abort();
}

/** Begin anew. */
export function clear() {
  stop();
  messages = [];
  $("messages").replaceChildren();
  $("empty").hidden = false;
  tell("");
  $("prompt").focus();
}
