// What stands above all until something else has to be said.

import { $, say } from "/page/dom.js";
import { Invalid } from "/page/settings.js";

/** Say it; nothing: take it away. */
export function tell(text) {
  say($("notice"), text);
  $("notice").hidden = !text;
}

/** Show a setting that cannot be sent, and why. Raises whatever else went wrong. */
export function refuse(error) {
  if (!(error instanceof Invalid)) throw error;
  $("settings").open = true;
  error.field.setAttribute("aria-invalid", "true");
  tell(error.message);
}
