// What to do about an error, in plain words.

const WORDS = {
  unreachable: ["The server cannot be reached", "Is it still running, and is the network there? Then try again."],
  unauthenticated: ["The server does not take the key", "Check it in the settings; the server's operator makes another with `tokenwire keys new`."],
  permission_denied: ["This key may not do that", "Use another key, or ask the server's operator for the right."],
  not_found: ["There is no such model here", "Choose another model above."],
  invalid_argument: ["The request cannot be answered as it is", "Change what the message names: one of the settings, or the length of the conversation (New begins another). Then try again."],
  failed_precondition: ["The request does not fit this server", "Change what the message names in the settings, then try again."],
  out_of_range: ["The request is too large", "Begin a new conversation, or shorten the message."],
  resource_exhausted: ["The server is full, or your limit is reached", "Wait a little and try again."],
  unavailable: ["The server cannot answer now", "A tier is starting, stopping or lost. Wait a little and try again."],
  deadline_exceeded: ["The time ran out", "Ask for fewer tokens, or try again when less is going on."],
  unimplemented: ["This server cannot do that", "Leave out what the message names in the settings."],
  internal: ["Something broke in the server", "Try again; if it stays so, tell the server's operator what the message says."],
};

const OTHERWISE = ["The request failed", "Try again; if it stays so, tell the server's operator what the message says."];
const NO_KEY = ["The server asks who calls", "Enter an API key in the settings; the server's operator makes one with `tokenwire keys new`."];
const TOO_LONG = ["The conversation is longer than the model can read", "Shorten the message, or begin a new conversation (New)."];

/** A headline, the server's words unless they tell of what the page does not have, and an advice. */
export function wordsFor(error) {
  if (error.reason === "NO_CREDENTIALS") return words(NO_KEY);
  if (error.reason === "CONTEXT_LENGTH_EXCEEDED" && error.fields.includes("input")) return words(TOO_LONG);
  return words(WORDS[error.code] ?? OTHERWISE, error.message);
}

function words([headline, advice], said = "") {
  return { headline, said, advice };
}

/** The same in one line. */
export function lineFor(error) {
  const { headline, said, advice } = wordsFor(error);
  return `${headline}${said && `: ${said}`}. ${advice}`;
}

const REASONS = {
  STOP_TOKEN: "the model ended it",
  STOP_STRING: "a stop string came",
  LENGTH: "most tokens reached",
  CANCELLED: "cancelled",
  DEADLINE: "the time ran out",
  ERROR: "an error",
};

/** Why an answer ended, in words. */
export function endOf(finish) {
  const reason = (finish.reason ?? "").replace("FINISH_REASON_", "");
  return finish.stopString ? `“${finish.stopString}” came` : (REASONS[reason] ?? reason.toLowerCase());
}
