// The list of models: asked for with the key in the settings until it is there.

import { unary } from "/page/connect.js";
import { $, make, pause } from "/page/dom.js";
import { lineFor } from "/page/failures.js";
import { refuse, tell } from "/page/notice.js";
import { key } from "/page/settings.js";

const SOON_MS = 3000, SELDOM_MS = 30_000;
const PASSING = ["unavailable", "unreachable", "resource_exhausted"];
let asking = null;

/** Fill it anew. Where that fails, say why, and ask again: soon where waiting may help, else seldom, for a key that is let in again. */
export async function listModels() {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  $("key").removeAttribute("aria-invalid");
  let given;
  try {
    given = key();
  } catch (error) {
    none("—");
    return refuse(error);
  }
  for (let first = true; !signal.aborted; first = false) {
    try {
      const { models = [] } = await unary("ListModels", {}, given, signal);
      fill(models.filter((each) => !each.capabilities || each.capabilities.includes("CAPABILITY_GENERATE")));
      return tell("");
    } catch (error) {
      if (signal.aborted) return;
      none("—");
      tell(lineFor(error));
      if (first && error.code === "unauthenticated") $("settings").open = true;
      await pause(PASSING.includes(error.code) ? SOON_MS : SELDOM_MS);
    }
  }
}

function fill(models) {
  const names = models.flatMap((each) => [each.name, ...(each.adapters ?? [])]);
  if (!names.length) return none("none that generates");
  const list = $("model"), chosen = list.value;
  list.replaceChildren(...names.map((name) => option(name, name)));
  if (names.includes(chosen)) list.value = chosen;
  list.disabled = false;
}

function none(words) {
  $("model").replaceChildren(option("", words));
  $("model").disabled = true;
}

function option(value, words) {
  const made = make("option", "", words);
  made.value = value;
  return made;
}
