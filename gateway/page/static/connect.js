// Calls of tokenwire.v1.GenerationService by the Connect protocol in JSON (https://connectrpc.com/docs/protocol).
// Knows no page.

const SERVICE = "/tokenwire.v1.GenerationService/";
const END = 2;

/** How a call failed: Connect's code, the server's words, and what it adds. `reason` tells errors of one code apart. */
export class CallError extends Error {
  constructor(code, message, details = [], reason = "") {
    super(message);
    this.code = code;
    this.details = details;
    this.reason = reason || (this.#detail("ErrorInfo")?.reason ?? "");
  }

  /** The fields of the request that are named, as `options.stop.max_tokens`. */
  get fields() {
    return (this.#detail("BadRequest")?.fieldViolations ?? []).map((each) => each.field);
  }

  /** Seconds after which to try again, where the server said so. */
  get retryAfter() {
    const delay = this.#detail("RetryInfo")?.retryDelay;
    return delay ? parseFloat(delay) : null;
  }

  #detail(name) {
    return this.details.find((each) => each.type === `google.rpc.${name}`)?.debug;
  }
}

/** The head of every request: who asks, where a key was given. */
export function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** An error of any answer that is none of the protocol's own: JSON of either shape, or nothing that can be read. */
export async function errorOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch { /* no JSON: the status has to do */ }
  const codes = { 401: "unauthenticated", 403: "permission_denied", 404: "not_found", 429: "resource_exhausted", 503: "unavailable" };
  const code = codes[response.status] ?? body.code ?? "unknown";
  if (body.error) return errorIn(body, code);
  return new CallError(code, body.message ?? `the server answered with status ${response.status}`, body.details);
}

/** The error of a body of OpenAI's shape, where its status says `code`. */
export function errorIn({ error }, code) {
  return new CallError(code, error.message, [], (error.code ?? "").toUpperCase());
}

async function post(method, body, contentType, key, signal) {
  const headers = { "Content-Type": contentType, "Connect-Protocol-Version": "1", ...authorization(key) };
  try {
    return await fetch(SERVICE + method, { method: "POST", body, headers, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw failed(error);
  }
}

function failed(error) {
  if (error.name === "AbortError" || error instanceof CallError) return error;
  return new CallError("unreachable", "the connection to the server failed");
}

/** One message for one message. */
export async function unary(method, message, key, signal) {
  const response = await post(method, JSON.stringify(message), "application/json", key, signal);
  if (!response.ok) throw await errorOf(response);
  return response.json();
}

/** The messages that answer one. Raises CallError; AbortError where `signal` ended it. */
export async function* stream(method, message, key, signal) {
  const response = await post(method, enveloped(message), "application/connect+json", key, signal);
  if (!response.ok) throw await errorOf(response);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = new Uint8Array(0);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new CallError("unreachable", "the answer broke off before its end");
      held = joined(held, value);
      let at = 0;
      while (held.length - at >= 5) {
        const size = new DataView(held.buffer, held.byteOffset + at + 1, 4).getUint32(0);
        if (held.length - at - 5 < size) break;
        const found = JSON.parse(decoder.decode(held.subarray(at + 5, at + 5 + size)));
        if (held[at] & END) {
          if (found.error) throw new CallError(found.error.code, found.error.message ?? "", found.error.details);
          return;
        }
        yield found;
        at += 5 + size;
      }
      held = held.subarray(at);
    }
  } catch (error) {
    throw failed(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function enveloped(message) {
  const content = new TextEncoder().encode(JSON.stringify(message));
  const whole = new Uint8Array(5 + content.length);
  new DataView(whole.buffer).setUint32(1, content.length);
  whole.set(content, 5);
  return whole;
}

function joined(first, second) {
  if (!first.length) return second;
  const whole = new Uint8Array(first.length + second.length);
  whole.set(first);
  whole.set(second, first.length);
  return whole;
}
