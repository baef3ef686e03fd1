// What browsers' clients get, as JSON on standard output: Connect's own client (connect-web over fetch, connect-node over
// HTTP/1.1), each by the Connect protocol and by gRPC-Web, and Google's client for gRPC-Web over XMLHttpRequest.
// Arguments: folder of node_modules, base URL, the contract as a set of file descriptors (`buf build`).
const { createRequire } = require("node:module");
const { readFileSync } = require("node:fs");
const [, , folder, baseUrl, contract] = process.argv;
const load = createRequire(folder + "/package.json");
const { create, createFileRegistry, fromBinary, toBinary } = load("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = load("@bufbuild/protobuf/wkt");
const { Code, ConnectError, createClient } = load("@connectrpc/connect");
const web = load("@connectrpc/connect-web");
const node = load("@connectrpc/connect-node");
global.XMLHttpRequest = load("xhr2");
const grpcWeb = load("grpc-web");

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(contract)));
const Service = registry.getService("tokenwire.v1.GenerationService");
const DETAILS = ["ErrorInfo", "BadRequest", "RetryInfo"].map((name) => registry.getMessage("google.rpc." + name));
const greedy = (max) => ({ sampling: { temperature: 0 }, stop: { maxTokens: max } });
const chat = (max) => ({
  conversation: { messages: [{ role: "user", content: "What is the capital of France?" }] }, options: greedy(max),
});
const long = { prompts: [{ form: { case: "text", value: "Once" } }], options: { stop: { maxTokens: 4000, ignoreEos: true } } };

async function failure(promise) {
  try {
    await promise;
    return { code: "none" };
  } catch (error) {
    const found = ConnectError.from(error);
    const [info, bad, retry] = DETAILS.map((schema) => found.findDetails(schema)[0]);
    return { code: Code[found.code], message: found.rawMessage, reason: info?.reason ?? null, domain: info?.domain ?? null,
             field: bad?.fieldViolations[0]?.field ?? null, retries: Boolean(retry) };
  }
}

async function all(stream) {
  const messages = [];
  for await (const message of stream) messages.push(message);
  return messages;
}

async function withConnect(transport) {
  const told = {};
  const client = createClient(Service, transport);
  let requestId = null;
  const messages = await all(client.chat(chat(8), { onHeader: (headers) => { requestId = headers.get("x-request-id"); } }));
  told.text = messages.map((each) => each.delta?.text ?? "").join("");
  told.finish = { reason: messages.at(-1).finish.reason, tokens: messages.at(-1).finish.usage.completionTokens };
  told.pieces = messages.length;
  told.requestId = Boolean(requestId);
  const prompts = ["Once upon a time", "The sea was"].map((value) => ({ form: { case: "text", value } }));
  const several = await all(client.generate({ prompts, options: greedy(6) }));
  told.several = [0, 1].map((index) => several.filter((each) => each.index === index).map((each) => each.delta?.text ?? "").join(""));
  const tokens = await client.tokenize({ texts: ["Hello world"] });
  told.ids = [...tokens.encodings[0].tokenIds];
  told.back = (await client.detokenize({ sequences: [{ ids: told.ids }] })).texts[0];
  told.count = (await client.countTokens({ texts: ["Hello world"] })).texts[0];
  told.models = (await client.listModels({})).models.map((card) => card.name);
  told.files = (await all(client.getTokenizer({}))).length > 0;
  told.badStream = await failure(all(client.generate({ prompts: [] })));
  told.badUnary = await failure(client.tokenize({}));
  told.noModel = await failure(all(client.chat({ ...chat(2), model: "nobody" })));
  told.biDi = await failure(all(client.streamDetokenize((async function* () { yield {}; })())));
  const late = await all(client.generate(long, { timeoutMs: 400 })).then((each) => each.at(-1), (error) => ConnectError.from(error));
  told.late = late.finish?.reason ?? Code[late.code];
  const aborted = new AbortController();
  let seen = 0;
  told.aborted = await failure((async () => {
    for await (const _ of client.generate(long, { signal: aborted.signal })) if (++seen === 3) aborted.abort();
  })());
  told.seen = seen;
  const left = client.generate(long)[Symbol.asyncIterator]();
  await left.next();
  await left.return?.();
  return told;
}

async function withGoogles(format) {
  const told = {};
  const client = new grpcWeb.GrpcWebClientBase({ format });
  const request = (name, message, kind) => {
    const found = Service.method[name];
    const path = `/${Service.typeName}/${found.name}`;
    const about = new grpcWeb.MethodDescriptor(path, kind, Object, Object,
      (each) => toBinary(found.input, create(found.input, each)), (bytes) => fromBinary(found.output, bytes));
    return { url: baseUrl + path, message, about };
  };
  const unary = (name, given) => {
    const { url, message, about } = request(name, given, "unary");
    return client.unaryCall(url, message, {}, about);
  };
  const stream = (name, given, metadata = {}) => new Promise((resolve) => {
    const { url, message, about } = request(name, given, "server_streaming");
    const messages = [];
    const call = client.serverStreaming(url, message, metadata, about);
    call.on("data", (each) => messages.push(each));
    call.on("error", (error) => resolve({ messages, error }));
    call.on("end", () => resolve({ messages }));
  });
  const answer = await stream("chat", chat(8));
  told.text = answer.messages.map((each) => each.delta?.text ?? "").join("");
  told.error = answer.error ? String(answer.error) : null;
  told.ids = [...(await unary("tokenize", { texts: ["Hello world"] })).encodings[0].tokenIds];
  const bad = await unary("tokenize", {}).catch((error) => error);
  told.bad = [bad.code, bad.message, Object.keys(bad.metadata ?? {}).includes("grpc-status-details-bin")];
  const streamed = await stream("generate", { prompts: [] });
  told.badStream = [streamed.error?.code, streamed.error?.message];
  told.late = (await stream("generate", long, { deadline: String(Date.now() + 400) })).messages.at(-1)?.finish?.reason ?? null;
  // Outside of browsers XMLHttpRequest has no pieces: a stream comes whole, and is left before its end all the same.
  await new Promise((resolve) => {
    const { url, message, about } = request("generate", long, "server_streaming");
    const call = client.serverStreaming(url, message, {}, about);
    setTimeout(() => { call.cancel(); resolve(); }, 300);
  });
  return told;
}

(async () => {
  const told = {};
  for (const useBinaryFormat of [true, false]) {
    const kind = useBinaryFormat ? "binary" : "json";
    told[`connect-web ${kind}`] = await withConnect(web.createConnectTransport({ baseUrl, useBinaryFormat }));
    told[`connect-web grpc-web ${kind}`] = await withConnect(web.createGrpcWebTransport({ baseUrl, useBinaryFormat }));
    const over = { baseUrl, useBinaryFormat, httpVersion: "1.1" };
    told[`connect-node ${kind}`] = await withConnect(node.createConnectTransport(over));
    told[`connect-node grpc-web ${kind}`] = await withConnect(node.createGrpcWebTransport(over));
  }
  for (const format of ["text", "binary"]) told[`grpc-web ${format}`] = await withGoogles(format);
  process.stdout.write(JSON.stringify(told));
})().catch((error) => { console.error(error); process.exit(1); });
