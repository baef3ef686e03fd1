// The settings as the form has them. Kept nowhere: not in the browser's storage, not in the address.

import { $ } from "/page/dom.js";

const NUMBERS = ["temperature", "top-p", "max-tokens", "seed", "alternatives"];

/** The key as it was typed; empty: none. Raises Invalid where no header can carry it. */
export function key() {
  const typed = $("key").value.trim();
  if (!/^[\x20-\x7e]*$/.test(typed)) throw new Invalid($("key"), "keys are made of ASCII characters alone; this has others");
  return typed;
}

/** A field's number; undefined where it is empty. Raises where the field does not take what stands there. */
function number(id) {
  const field = $(id);
  if (field.validity.badInput || !field.checkValidity()) throw new Invalid(field, field.validationMessage);
  return field.value === "" ? undefined : Number(field.value);
}

/** As `number`, with every digit: JavaScript's numbers have 53 bits, a seed 64. */
function digits(id) {
  const found = number(id);
  return /^[0-9]+$/.test($(id).value) ? $(id).value : found;
}

/** A setting that cannot be sent. */
export class Invalid extends Error {
  constructor(field, message) {
    super(`${field.closest("label").firstChild.textContent.trim()}: ${message}`);
    this.field = field;
  }
}

/** A ChatRequest for these messages. Raises Invalid. */
export function request(messages) {
  for (const id of [...NUMBERS, "schema"]) $(id).removeAttribute("aria-invalid");
  const system = $("system").value.trim();
  const stopStrings = $("stop").value.split("\n").filter((line) => line !== "");
  const options = {
    sampling: { temperature: number("temperature"), topP: number("top-p"), seed: digits("seed") },
    stop: { maxTokens: number("max-tokens"), stopStrings },
    output: { logprobs: number("alternatives") },
  };
  const schema = $("schema").value.trim();
  if (schema) {
    try {
      JSON.parse(schema);
    } catch (error) {
      throw new Invalid($("schema"), `this is not JSON (${error.message})`);
    }
    options.constraint = { jsonSchema: schema };
  }
  const whole = system ? [{ role: "system", content: system }, ...messages] : messages;
  return { model: $("model").value, conversation: { messages: whole }, options };
}

/** The most important ones in a few words. */
export function inShort() {
  const words = [];
  if ($("temperature").value !== "") words.push(`temperature ${$("temperature").value}`);
  if ($("top-p").value !== "") words.push(`top-p ${$("top-p").value}`);
  if ($("max-tokens").value !== "") words.push(`up to ${$("max-tokens").value} tokens`);
  if ($("seed").value !== "") words.push(`seed ${$("seed").value}`);
  if ($("schema").value.trim()) words.push("JSON");
  if ($("system").value.trim()) words.push("system prompt");
  return words.join(" · ");
}
