// Ties the page together.

import { busy, clear, send, stop } from "/page/chat.js";
import { $ } from "/page/dom.js";
import { watch } from "/page/live.js";
import { listModels } from "/page/models.js";
import { inShort } from "/page/settings.js";

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
$("colour").addEventListener("change", () => (document.body.dataset.colour = $("colour").value));
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
