// What the conformance kit cannot see: `npm test`.

import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { services } from "./contract.js";
import type { SessionRequest__Output } from "./generated/tokenwire/v1/SessionRequest.js";
import type { SessionResponse } from "./generated/tokenwire/v1/SessionResponse.js";
import { Client, TokenwireError } from "./index.js";
import { Output } from "./output.js";
import { TimeLimit } from "./timelimit.js";

const server = new Server();
let streams = 0;
let client: Client;

/** Ends every request but `hang` with a token. */
function session(call: ServerDuplexStream<SessionRequest__Output, SessionResponse>): void {
  streams += 1;
  call.on("data", (frame: SessionRequest__Output) => {
    if (frame.hello) call.write({ hello: { protocolVersion: 1 } });
    for (const { handle, request } of frame.submits)
      if (request?.text !== "hang")
        call.write({ handles: [handle], texts: ["a"], numTokens: [1], finishes: [{ handle, reason: "FINISH_REASON_LENGTH" }] });
  });
  call.on("end", () => call.end());
}

before(async () => {
  server.addService(services.tokenwire.v1.GenerationService.service, { Session: session });
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))),
  );
  client = new Client(`127.0.0.1:${port}`);
});

after(() => {
  client.close();
  server.forceShutdown();
});

const refusedFor = (field: string) => (error: unknown) => {
  assert.ok(error instanceof TokenwireError, String(error));
  assert.deepEqual([error.code, error.reason, error.fields], ["INVALID_ARGUMENT", "INVALID_REQUEST", [field]]);
  return true;
};

const BAD: [field: string, request: object][] = [
  ["text", { text: "Great \ud83d" }],
  ["text", { text: 1 }],
  ["max_tokens", { text: "a", maxTokens: 1 }],
  ["options", { text: "a", options: "abc" }],
  ["options.num_choices", { text: "a", options: { numChoices: NaN } }],
  ["options.num_choices", { text: "a", options: { numChoices: 2.5 } }],
  ["options.num_choices", { text: "a", options: { numChoices: -1 } }],
  ["options.num_choices", { text: "a", options: { numChoices: "2" } }],
  ["options.num_choices", { text: "a", options: { numChoices: 129 } }],
  ["options.sampling.seed", { text: "a", options: { sampling: { seed: 123n } } }],
  ["options.sampling.seed", { text: "a", options: { sampling: { seed: "1".repeat(30) } } }],
  ["options.sampling.temperature", { text: "a", options: { sampling: { temperature: "cold" } } }],
  ["options.sampling.logit_bias[x]", { text: "a", options: { sampling: { logitBias: { x: 1 } } } }],
  ["options.stop.stop_strings", { text: "a", options: { stop: { stopStrings: "b" } } }],
  ["options.stop.stop_strings[1]", { text: "a", options: { stop: { stopStrings: ["b", "\udc00"] } } }],
  ["conversation.messages[0].content", { conversation: { messages: [{ role: "user", content: "\ud800" }] } }],
  ["truncation.side", { text: "a", truncation: { side: "MIDDLE" } }],
  ["context.timeout_ms", { text: "a", context: { timeoutMs: -1 } }],
];

test("what cannot be sent is refused by its field, takes no place and disturbs nobody", async () => {
  const session = client.session(1);
  for (const [field, request] of BAD) await assert.rejects(session.submit(request), refusedFor(field), `${field} of ${String(request)}`);
  for (const credit of [NaN, -1, 0.5]) await assert.rejects(session.submit({ text: "a" }, credit), refusedFor("credit"));
  const good = { text: "a 😀", options: { numChoices: 1, sampling: { seed: "123", logitBias: { 5: 1 } } }, context: { timeoutMs: 60_000 } };
  const [output] = await session.submit({ ...good, truncation: { side: "TRUNCATION_SIDE_START" } });
  assert.equal(await output!.whole(), "a");
  assert.throws(() => output!.grant(1.5), refusedFor("tokens"));
  assert.equal(streams, 1);
  session.close();
  assert.throws(() => client.session(NaN), refusedFor("max_open"));
});

test("a request whose time is 0 does not wait for room", async () => {
  const session = client.session(1);
  await session.submit({ text: "hang" });
  const late = session.submit({ text: "a", context: { timeoutMs: 0 } });
  await assert.rejects(late, (error: TokenwireError) => error.code === "DEADLINE_EXCEEDED");
  session.close();
});

test("a key that no header may hold is refused and not shown", () => {
  for (const apiKey of ["secret\n", " secret", "sécret", "secret\x7f"])
    assert.throws(() => new Client("127.0.0.1:1", { apiKey }), (error: Error) => {
      assert.ok(!error.message.includes("cret"), error.message);
      return refusedFor("api_key")(error);
    });
});

test("readers of one output share what comes, and all hear of its end", async () => {
  const output = new Output({ cancel() {}, grant() {} }, 1, undefined, new TimeLimit(undefined));
  const reading = [output.next(), output.next(), output.next()];
  output.add({ text: "a", numTokens: 1 });
  output.end({ handle: 1, reason: "FINISH_REASON_LENGTH" } as never);
  assert.deepEqual(await Promise.all(reading), [{ text: "a", numTokens: 1 }, undefined, undefined]);
});
