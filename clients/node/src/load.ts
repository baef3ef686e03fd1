// Very many requests at once on one Session, or on one for each of several connections, one of them held at zero credit on
// demand; prints figures as JSON.
// node dist/load.js --target HOST:PORT [--requests 500] [--tokens 100] [--held true] [--connections 1]

import { parseArgs } from "node:util";
import { performance } from "node:perf_hooks";
import { Client, type Output, type Session } from "./index.js";

const WARM_UP = 10; // gaps of each output that are not counted: the prompts are computed meanwhile

const { values } = parseArgs({
  options: {
    target: { type: "string", default: "127.0.0.1:50051" },
    requests: { type: "string", default: "500" },
    tokens: { type: "string", default: "100" },
    held: { type: "string", default: "false" },
    connections: { type: "string", default: "1" },
  },
});
const requests = Number(values.requests);
const options = { stop: { maxTokens: Number(values.tokens), ignoreEos: true } };
const gapsMs: number[] = [];

/** Reads an output to its end and notes the time between its pieces. */
async function read(output: Output): Promise<number> {
  let last: number | undefined;
  let pieces = 0;
  let tokens = 0;
  for await (const { numTokens } of output) {
    const now = performance.now();
    if (last !== undefined && pieces > WARM_UP) gapsMs.push(now - last);
    last = now;
    pieces += 1;
    tokens += numTokens;
  }
  return tokens;
}

const percentile = (sorted: number[], share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;

const clients = Array.from({ length: Number(values.connections) }, () => new Client(values.target));
const sessions = clients.map((client) => client.session(requests));
const sessionOf = (number: number): Session => sessions[number % sessions.length]!;
const began = performance.now();
const [first] = await sessionOf(0).submit({ text: "the first of many", options }, values.held === "true" ? 0 : undefined);
const others = await Promise.all(
  Array.from({ length: requests - 1 }, (_, number) => sessionOf(number + 1).submit({ text: `request ${number}`, options })),
);
let firstTokens = 0;
const firstEnded = read(first!).then((tokens) => (firstTokens = tokens));
const counts = await Promise.all(others.map((outputs) => read(outputs[0]!)));
const seconds = (performance.now() - began) / 1000;
const heldAtTheEnd = first!.finish === undefined && first!.text === "";
first!.grant(2 ** 31);
await firstEnded;
gapsMs.sort((a, b) => a - b);
const tokens = counts.reduce((sum, each) => sum + each, 0);
console.log(
  JSON.stringify({
    requests,
    tokens,
    seconds,
    gap_ms_p50: percentile(gapsMs, 0.5),
    gap_ms_p99: percentile(gapsMs, 0.99),
    gap_ms_max: gapsMs.at(-1) ?? 0,
    held_at_the_end: heldAtTheEnd,
    first_tokens: firstTokens,
  }),
);
sessions.forEach((session) => session.close());
clients.forEach((client) => client.close());
