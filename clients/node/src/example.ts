// Shows what the package does, against a running gateway: npm run example -- [--target HOST:PORT] [--tls-ca FILE] [--api-key KEY]

import { status } from "@grpc/grpc-js";
import { parseArgs } from "node:util";
import { Client, errorOf } from "./index.js";
import type { GenerationOptions } from "./generated/tokenwire/v1/GenerationOptions.js";

const greedy = (maxTokens: number): GenerationOptions => ({ sampling: { temperature: 0 }, stop: { maxTokens } });
const endless: GenerationOptions = { stop: { ignoreEos: true } };

const { values } = parseArgs({
  options: {
    target: { type: "string", default: "127.0.0.1:50051" },
    "tls-ca": { type: "string" },
    "api-key": { type: "string" },
  },
});
const tls = values["tls-ca"] !== undefined;
const client = new Client(values.target, { apiKey: values["api-key"], tls, caFile: values["tls-ca"] });

// A stream: the continuation of a prompt, and how it ended.
process.stdout.write("generate:");
for await (const { delta, finish } of client.stub.Generate({ prompts: [{ text: "Once upon a time" }], options: greedy(16) })) {
  process.stdout.write(delta?.text ?? "");
  if (finish) console.log(` (${finish.reason}, ${finish.usage?.completionTokens} tokens)`);
}

// A conversation.
const messages = [{ role: "user", content: "What is the capital of France?" }];
process.stdout.write("chat: ");
for await (const { delta } of client.stub.Chat({ conversation: { messages }, options: greedy(16) }))
  process.stdout.write(delta?.text ?? "");
console.log();

// Many requests on one stream, one of them with credits and cancelled.
const session = client.session(256);
const [story] = await session.submit({ text: "A story without end", options: endless }, 4); // at most four tokens wait unread
const chapters = await Promise.all(
  Array.from({ length: 20 }, (_, number) => session.text(`Chapter ${number + 1}:`, { options: greedy(4) })),
);
for await (const _ of story!) break; // leaving the loop cancels
await story!.whole();
console.log(`session: ${chapters.length} chapters, the story ended with ${story!.finish!.reason}`);
session.close();

// A deadline ends a call by its own limit.
try {
  const call = client.stub.Generate({ prompts: [{ text: "A story without end" }], options: endless }, { deadline: Date.now() + 300 });
  for await (const { finish } of call) if (finish) console.log("deadline:", finish.reason);
} catch (error) {
  if ((error as { code?: number }).code !== status.DEADLINE_EXCEEDED) throw error;
  console.log("deadline: DEADLINE_EXCEEDED");
}

// What a refusal says of the field that is wrong.
try {
  for await (const _ of client.stub.Generate({ prompts: [{ text: "Hello" }], options: { sampling: { temperature: -1 } } }));
  throw new Error("a temperature below zero was not refused");
} catch (error) {
  const { code, reason, fields } = errorOf(error);
  if (code !== "INVALID_ARGUMENT") throw error;
  console.log(`error: ${code}, ${reason}, ${fields}`);
}
client.close();
