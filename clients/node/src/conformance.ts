// What `tokenwire conformance --client` drives: this package through every case.

import type { GenerateRequest } from "./generated/tokenwire/v1/GenerateRequest.js";
import type { GenerationOptions } from "./generated/tokenwire/v1/GenerationOptions.js";
import type { TextRequest } from "./generated/tokenwire/v1/TextRequest.js";
import type { Finish__Output } from "./generated/tokenwire/v1/Finish.js";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Client, errorOf, errorOfFinish, type Output, type Session } from "./index.js";
import { messageType } from "./contract.js";

const tell = (line: object): void => console.log(JSON.stringify(line));

function told(error: unknown): object {
  const { code, reason, fields, retryAfterMs } = errorOf(error);
  return { code, reason, fields, retry_after_ms: retryAfterMs };
}

function outputLine(output: number, choice: number, text: string, finish?: Finish__Output, error?: unknown): object {
  return {
    output,
    choice,
    text,
    tokens: finish?.usage?.completionTokens,
    reason: finish && String(finish.reason).replace("FINISH_REASON_", ""),
    error: error === undefined ? undefined : told(error),
  };
}

const greedy = (maxTokens: number): GenerationOptions => ({ sampling: { temperature: 0 }, stop: { maxTokens } });

async function generate(client: Client, request: GenerateRequest, ...prompts: string[]): Promise<void> {
  const texts = prompts.map(() => "");
  try {
    for await (const response of client.stub.Generate({ ...request, prompts: prompts.map((text) => ({ text })) })) {
      texts[response.index] += response.delta?.text ?? "";
      if (response.finish) {
        const error = errorOfFinish(response.finish.error);
        tell(outputLine(response.index, 0, texts[response.index]!, response.finish, error));
      }
    }
  } catch (error) {
    tell({ error: told(error) });
  }
}

async function chat(client: Client): Promise<void> {
  const messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "one two three" },
  ];
  let text = "";
  for await (const response of client.stub.Chat({ conversation: { messages }, options: greedy(3) })) {
    text += response.delta?.text ?? "";
    if (response.finish) tell(outputLine(0, response.choice, text, response.finish));
  }
}

async function deadline(client: Client): Promise<void> {
  const call = client.stub.Generate({ prompts: [{ text: "hang on" }] }, { deadline: Date.now() + 2000 });
  try {
    for await (const _ of call);
  } catch (error) {
    tell({ error: told(error) });
  }
}

async function cancel(client: Client): Promise<void> {
  const call = client.stub.Generate({ prompts: [{ text: "hang on" }] });
  try {
    for await (const _ of call) call.cancel();
  } catch (error) {
    tell({ error: told(error) });
  }
}

async function tellAll(...requests: Output[][]): Promise<void> {
  for (const [index, outputs] of requests.entries())
    for (const [choice, output] of outputs.entries()) {
      let error: unknown;
      await output.whole().catch((caught: unknown) => (error = caught));
      tell(outputLine(index, choice, output.text, output.finish, error));
    }
}

/** Submits a case's first request, which may be refused before it has outputs, and tells how that ended. */
async function trySubmit(session: Session, request: TextRequest): Promise<void> {
  let outputs: Output[];
  try {
    outputs = await session.submit(request);
  } catch (error) {
    return tell(outputLine(0, 0, "", undefined, error));
  }
  await tellAll(outputs);
}

async function tellSecond([output]: Output[]): Promise<void> {
  tell(outputLine(1, 0, await output!.whole(), output!.finish));
}

const onSession: Record<string, (session: Session) => Promise<void>> = {
  session: async (s) => tellAll(...(await Promise.all(["one two", "three", "four five six"].map((text) => s.submit({ text }))))),
  "session-choices": async (s) =>
    tellAll(await s.submit({ text: "one two", options: { numChoices: 2 } }), await s.submit({ text: "three" })),
  "session-cancel": async (s) => {
    const hanging = await s.submit({ text: "hang on" });
    const other = await s.submit({ text: "one two three" });
    await hanging[0]!.next();
    hanging[0]!.cancel();
    await tellAll(hanging, other);
  },
  "session-leave": async (s) => {
    const [left] = await s.submit({ text: "hang on" });
    for await (const _ of left!) break;
    await tellSecond(await s.submit({ text: "one two" }));
  },
  "session-credit": async (s) => tellAll(await s.submit({ text: "a b c d e f g h i j" }, 2)),
  "session-held": async (s) => {
    const held = await s.submit({ text: "a b" }, 0);
    const other = await s.submit({ text: "one two three" });
    await other[0]!.whole();
    held[0]!.grant(2);
    await tellAll(held, other);
  },
  "session-error": async (s) =>
    tellAll(...(await Promise.all(["refuse me", "overload me", "one two"].map((text) => s.submit({ text }))))),
  "session-drain": async (s) => {
    const held = await s.submit({ text: "hold on" });
    await held[0]!.next(); // with this text came the Drain: the next request has a new stream
    await tellAll(held, await s.submit({ text: "one two" }));
  },
  "session-lost": async (s) => tellAll(await s.submit({ text: "hold on" })),
  "session-future": async (s) => tellAll(await s.submit({ text: "one two" }), await s.submit({ text: "three" })),
  "session-too-many-choices": async (s) => {
    await trySubmit(s, { text: "one two", options: { numChoices: 129 } });
    await tellSecond(await s.submit({ text: "three" }));
  },
  "session-bad-text": async (s) => {
    await trySubmit(s, { text: "one two \ud83d" });
    await tellSecond(await s.submit({ text: "three" }));
  },
  "session-time-limit": async (s) => {
    await tellAll(await s.submit({ text: "one" }));
    await tellSecond(await s.submit({ text: "mute", context: { timeoutMs: 1000 } }));
  },
  "session-no-hello": (s) => trySubmit(s, { text: "one two", context: { timeoutMs: 5000 } }),
  "session-overrun": async (s) => {
    await tellAll(await s.submit({ text: "overrun" }, 2)); // its stream has ended then
    await tellSecond(await s.submit({ text: "one two" }));
  },
  "session-bad-frame": async (s) => {
    await tellAll(await s.submit({ text: "crooked" }));
    await tellSecond(await s.submit({ text: "one two" }));
  },
  "session-large": async (s) => {
    const text = `slow ${"x".repeat(1_000_000)}`;
    await tellAll(...(await Promise.all(Array.from({ length: 40 }, () => s.submit({ text })))));
  },
  "session-many": async (s) =>
    tellAll(...(await Promise.all(Array.from({ length: 1000 }, (_, number) => s.submit({ text: `n${number}` }))))),
};

function vectors(folder: string): void {
  const read = (name: string): Buffer => readFileSync(join(folder, name));
  for (const { name, message } of JSON.parse(read("index.json").toString()) as { name: string; message: string }[]) {
    const type = messageType(message);
    const encoded = Buffer.from(type.encode(type.decode(read(`${name}.binpb`))).finish()).toString("base64");
    tell({ vector: name, encoded });
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      case: { type: "string", default: "" },
      target: { type: "string", default: "127.0.0.1:50051" },
      "tls-ca": { type: "string" },
      "api-key": { type: "string" },
      vectors: { type: "string" },
    },
  });
  if (values.vectors !== undefined) return vectors(values.vectors);
  const tls = values["tls-ca"] !== undefined;
  const client = new Client(values.target, { apiKey: values["api-key"], tls, caFile: values["tls-ca"] });
  const calls: Record<string, () => Promise<void>> = {
    generate: () => generate(client, { options: greedy(3) }, "one two three"),
    tls: () => generate(client, { options: greedy(3) }, "one two three"),
    key: () => generate(client, { options: greedy(3) }, "one two three"),
    prompts: () => generate(client, {}, "one two", "lost one"),
    chat: () => chat(client),
    "bad-field": () => generate(client, {}, "refuse me"),
    overloaded: () => generate(client, {}, "overload me"),
    deadline: () => deadline(client),
    "deadline-text": () => generate(client, {}, "slow words"),
    cancel: () => cancel(client),
  };
  const call = calls[values.case];
  const withSession = onSession[values.case];
  if (call !== undefined) await call();
  else if (withSession !== undefined) {
    const session = client.session();
    await withSession(session);
    session.close();
  } else tell({ skip: `this program does not know the case ${values.case}` });
  client.close();
}

await main();
