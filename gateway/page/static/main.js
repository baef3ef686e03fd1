// Ties the page together.

import { recolour } from "/page/answer.js";
import { busy, clear, send, stop, tell } from "/page/chat.js";
import { unary } from "/page/connect.js";
import { $, make } from "/page/dom.js";
import { wordsFor } from "/page/failures.js";
import { watch } from "/page/live.js";
import { inShort, key } from "/page/settings.js";

const LOOK_AGAIN_MS = 3000;

/** Fill the list of models; where that fails, say why, and look again where waiting may help. */
async function listModels() {
  const list = $("model");
  try {
    const { models = [] } = await unary("ListModels", {}, key());
    const able = models.filter((each) => !each.capabilities || each.capabilities.includes("CAPABILITY_GENERATE"));
    const chosen = list.value;
    list.replaceChildren();
    for (const name of able.flatMap((each) => [each.name, ...(each.adapters ?? [])])) {
      const option = make("option", "", name);
      option.value = name;
      list.append(option);
    }
    if (!list.options.length) list.append(make("option", "", "none that generates"));
    if ([...list.options].some((each) => each.value === chosen)) list.value = chosen;
    list.disabled = !able.length;
    tell("");
  } catch (error) {
    const [headline, advice] = wordsFor(error.code);
    list.replaceChildren(make("option", "", "—"));
    tell(`${headline}. ${advice}`);
    if (error.code === "unauthenticated") $("settings").open = true;
    if (["unavailable", "unreachable", "resource_exhausted"].includes(error.code)) setTimeout(listModels, LOOK_AGAIN_MS);
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && busy()) stop();
});
$("stop-button").addEventListener("click", stop);
$("clear").addEventListener("click", clear);
for (const example of document.querySelectorAll(".examples button")) {
  example.addEventListener("click", () => {
    $("prompt").value = example.textContent;
    $("prompt").focus();
    send();
  });
}
$("settings-form").addEventListener("submit", (event) => event.preventDefault());
$("settings-form").addEventListener("input", () => ($("settings-short").textContent = inShort()));
$("key").addEventListener("change", () => {
  listModels();
  watch.again();
});
$("colour").addEventListener("change", () => {
  document.body.dataset.colour = $("colour").value;
  recolour();
});
for (const view of ["chat", "live"]) {
  $(`show-${view}`).addEventListener("click", () => {
    document.body.dataset.view = view;
    for (const other of ["chat", "live"]) $(`show-${other}`).setAttribute("aria-pressed", String(other === view));
    watch.look();
  });
}
document.body.dataset.colour = $("colour").value;
$("settings-short").textContent = inShort();
$("prompt").focus();
listModels();
watch.start();
