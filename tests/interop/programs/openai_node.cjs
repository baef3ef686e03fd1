// OpenAI's own client for Node: what a program gets, as JSON on standard output. Arguments: folder of node_modules, base URL.
const { createRequire } = require("node:module");
const [, , folder, baseURL] = process.argv;
const OpenAI = createRequire(folder + "/package.json")("openai");

const MODEL = "smollm2-135m-instruct";
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const told = {};

async function failure(promise) {
  try {
    await promise;
    return { kind: "none" };
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? null, code: error.code ?? null, param: error.param ?? null,
             type: error.type ?? null, message: error.message };
  }
}

const user = (content) => [{ role: "user", content }];
const chat = (fields) => client.chat.completions.create({ model: MODEL, temperature: 0, max_tokens: 8, ...fields });
const complete = (fields) => client.completions.create({ model: MODEL, temperature: 0, max_tokens: 8, ...fields });

async function chats() {
  const messages = user("What is the capital of France?");
  const plain = await chat({ messages });
  told.chat = { text: plain.choices[0].message.content, finish: plain.choices[0].finish_reason, usage: plain.usage,
                object: plain.object, id: plain._request_id };
  const stream = await chat({ messages, stream: true, stream_options: { include_usage: true } });
  let text = "", usage = null, finish = null, chunks = 0;
  for await (const chunk of stream) {
    chunks += 1;
    text += chunk.choices[0]?.delta?.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  told.stream = { text, finish, usage, chunks };
  const helper = client.chat.completions.stream({ model: MODEL, messages, temperature: 0, max_tokens: 8 });
  told.helper = { text: (await helper.finalMessage()).content };
  const logprobs = await chat({ messages, logprobs: true, top_logprobs: 3 });
  told.logprobs = logprobs.choices[0].logprobs.content.map((each) => [each.token, each.logprob, each.top_logprobs.length]);
  const several = await chat({ messages, n: 3, temperature: 1, seed: 7 });
  const again = await chat({ messages, n: 3, temperature: 1, seed: 7 });
  told.several = several.choices.map((choice) => choice.message.content);
  told.again = again.choices.map((choice) => choice.message.content);
  told.stop = (await chat({ messages: user("Count: 1 2 3 4 5"), stop: ["4", "zz"], max_tokens: 40 })).choices[0];
  told.developer = (await chat({ messages: [{ role: "developer", content: "Be brief." }, ...messages] })).choices.length;
  told.parts = (await chat({ messages: user([{ type: "text", text: "Hi" }]) })).choices[0].finish_reason;
  told.extras = (await chat({ messages, top_k: 1, min_p: 0, ignore_eos: true, temperature: 1, priority: 3, timeout: 60 }))
    .usage.completion_tokens;
  const tools = [{ type: "function", function: { name: "get_weather", parameters: { type: "object", properties: {} } } }];
  told.tools = (await chat({ messages, tools, tool_choice: "auto", max_tokens: 4 })).choices[0].finish_reason;
  const called = [...messages, { role: "assistant", content: null, tool_calls: [
    { id: "call_1", type: "function", function: { name: "get_weather", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "call_1", content: "3 degrees" }];
  told.called = (await chat({ messages: called, tools })).choices.length;
  const raw = await client.chat.completions.create({ model: MODEL, messages, max_tokens: 1 },
    { headers: { "x-request-id": "from-node" } }).withResponse();
  told.raw = [raw.response.status, raw.response.headers.get("x-request-id")];
}

const weather = {
  type: "object", properties: { city: { enum: ["Bern", "Paris"] }, sunny: { type: "boolean" } }, required: ["city", "sunny"],
  additionalProperties: false,
};

async function shapes() {
  const messages = user("How is the weather in Paris? Answer as JSON.");
  const response_format = { type: "json_schema", json_schema: { name: "weather", strict: true, schema: weather } };
  const asked = { model: MODEL, messages, temperature: 0, max_tokens: 60, response_format };
  const parsed = await client.chat.completions.parse(asked);
  told.parsed = { value: parsed.choices[0].message.parsed, finish: parsed.choices[0].finish_reason };
  const stream = client.chat.completions.stream(asked);
  told.parsedStream = JSON.parse((await stream.finalChatCompletion()).choices[0].message.content);
  told.schema = JSON.parse((await chat({ messages, response_format, max_tokens: 60 })).choices[0].message.content);
  told.text = (await chat({ messages: user("What is the capital of France?"), response_format: { type: "text" } }))
    .choices[0].message.content;
  told.object = (await chat({ messages, response_format: { type: "json_object" }, max_tokens: 40 })).choices[0].message.content;
  told.chosen = (await chat({ messages, structured_outputs: { choice: ["yes", "no"] } })).choices[0].message.content;
  told.cut = await failure(client.chat.completions.parse({ ...asked, max_tokens: 2 }));
  const tools = [{ type: "function", function: { name: "get_weather", parameters: weather, strict: true } }];
  for (const [name, tool_choice] of [["required", "required"], ["named", { type: "function", function: { name: "get_weather" } }]]) {
    const made = (await chat({ messages, tools, tool_choice, parallel_tool_calls: false, max_tokens: 100 })).choices[0];
    const [call] = made.message.tool_calls;
    told[name] = { finish: made.finish_reason, name: call.function.name, value: JSON.parse(call.function.arguments) };
  }
  let streamed = "";
  for await (const chunk of await chat({ messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 100, stream: true }))
    for (const call of chunk.choices[0].delta.tool_calls ?? []) streamed += call.function.arguments ?? "";
  told.streamedCall = JSON.parse(streamed);
}

async function embeddings() {
  const input = ["The sea", "A tree"];
  const found = await client.embeddings.create({ model: MODEL, input });
  const plain = await client.embeddings.create({ model: MODEL, input: input[1], encoding_format: "float" });
  const far = Math.max(...plain.data[0].embedding.map((value, i) => Math.abs(value - found.data[1].embedding[i])));
  told.embeddings = { count: found.data.length, far, size: plain.data[0].embedding.length, tokens: found.usage.total_tokens };
}

async function bias() {
  const messages = user("What is the capital of France?");
  const prompt = "yes yes yes yes";
  const one = (fields) => complete({ prompt, max_tokens: 12, ...fields }).then((answer) => answer.choices[0].text);
  told.penalties = [await one({}), await one({ frequency_penalty: 2, presence_penalty: 2 })];
  told.bias = [(await chat({ messages, max_tokens: 1 })).choices[0].message.content,
               (await chat({ messages, max_tokens: 1, logit_bias: { 28: 100 } })).choices[0].message.content];
  const details = (await chat({ messages })).usage;
  told.details = [details.prompt_tokens_details.cached_tokens >= 0, details.completion_tokens_details.reasoning_tokens];
}

async function completions() {
  told.completion = (await complete({ prompt: "Once upon a time" })).choices[0].text;
  told.batch = (await complete({ prompt: ["Once upon a time", "The sea was"] })).choices.map((choice) => choice.text);
  told.ids = (await complete({ prompt: [504, 3575, 282, 4649] })).choices[0].text;
  const echoed = await complete({ prompt: "The capital of France", echo: true, logprobs: 1, max_tokens: 1 });
  told.echo = [echoed.choices[0].text, echoed.choices[0].logprobs.token_logprobs];
  let text = "";
  for await (const chunk of await complete({ prompt: "Once upon a time", stream: true })) text += chunk.choices[0].text;
  told.completionStream = text;
}

async function others() {
  told.models = [];
  for await (const model of client.models.list()) told.models.push(model.id);
  told.model = (await client.models.retrieve(MODEL)).object;
}

async function errors() {
  const messages = user("hi");
  told.errors = {
    "no model": await failure(chat({ model: "nobody", messages })),
    "no such model": await failure(client.models.retrieve("nobody")),
    "no messages": await failure(chat({ messages: [] })),
    temperature: await failure(chat({ messages, temperature: -1 })),
    unknown: await failure(chat({ messages, nonsense: 1 })),
    store: await failure(chat({ messages, store: true })),
    schema: await failure(chat({ messages, response_format: { type: "json_schema",
      json_schema: { name: "x", schema: { type: 5 } } } })),
    image: await failure(chat({ messages: user([{ type: "image_url", image_url: { url: "data:," } }]) })),
    suffix: await failure(complete({ prompt: "a", suffix: "b" })),
    best_of: await failure(complete({ prompt: "a", best_of: 2 })),
    "too long": await failure(complete({ prompt: "word ".repeat(20000) })),
    "no path": await failure(client.images.generate({ prompt: "a" })),
    timeout: await failure(chat({ messages, timeout: 0.02, max_tokens: 2000, ignore_eos: true })),
    "streamed error": await failure(chat({ messages, stream: true, max_tokens: 10 ** 7 })),
  };
}

async function leaving() {
  const messages = user("Tell a long story.");
  const long = { model: MODEL, messages, max_tokens: 4000, ignore_eos: true };
  const stream = await client.chat.completions.create({ ...long, stream: true });
  let seen = 0;
  for await (const _ of stream) if (++seen === 3) break;
  told.left = seen;
  const aborted = new AbortController();
  setTimeout(() => aborted.abort(), 200);
  told.aborted = await failure(client.chat.completions.create(long, { signal: aborted.signal }));
  told.timedOut = await failure(client.chat.completions.create(long, { timeout: 200 }));
}

(async () => {
  await chats();
  await shapes();
  await embeddings();
  await bias();
  await completions();
  await others();
  await errors();
  await leaving();
  process.stdout.write(JSON.stringify(told));
})().catch((error) => { console.error(error); process.exit(1); });
