// A browser with pages of two origins that use the gateway: what each page gets, as JSON on standard output.
// Arguments: folder of node_modules, base URL of the gateway, the contract as a set of file descriptors, port of the origin
// that the gateway lets in.
const { createRequire } = require("node:module");
const { createServer } = require("node:http");
const { readFileSync } = require("node:fs");
const { pathToFileURL } = require("node:url");
const [, , folder, baseUrl, contract, allowedPort] = process.argv;
const load = createRequire(folder + "/package.json");
const esbuild = load("esbuild");
const puppeteer = load("puppeteer-core");
const NO_BROWSER = 3;  // Chromium does not start here

const PAGE = `
import { createFileRegistry, create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import grpcWeb from "grpc-web";

const bytes = Uint8Array.from(atob(CONTRACT), (char) => char.charCodeAt(0));
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes));
const Service = registry.getService("tokenwire.v1.GenerationService");
const BadRequest = registry.getMessage("google.rpc.BadRequest");
const chat = { conversation: { messages: [{ role: "user", content: "hello" }] }, options: { stop: { maxTokens: 8, ignoreEos: true } } };
const long = { prompts: [{ form: { case: "text", value: "hello" } }], options: { stop: { maxTokens: 200, ignoreEos: true } } };

async function failure(promise) {
  try { await promise; return null; } catch (error) {
    const found = ConnectError.from(error);
    return { code: Code[found.code], field: found.findDetails(BadRequest)[0]?.fieldViolations[0]?.field ?? null };
  }
}

async function withConnect(transport) {
  const client = createClient(Service, transport);
  let requestId = null, pieces = 0, tokens = 0;
  for await (const answer of client.chat(chat, { onHeader: (headers) => { requestId = headers.get("x-request-id"); } })) {
    pieces += 1;
    tokens = answer.finish?.usage?.completionTokens ?? tokens;
  }
  const models = (await client.listModels({})).models.map((card) => card.name);
  const bad = [await failure(client.tokenize({})), await failure((async () => { for await (const _ of client.generate({})); })())];
  const aborted = new AbortController();
  let seen = 0;
  const left = await failure((async () => {
    for await (const _ of client.generate(long, { signal: aborted.signal })) if (++seen === 3) aborted.abort();
  })());
  const late = await failure((async () => {
    for await (const answer of client.generate(long, { timeoutMs: 300 })) if (answer.finish) seen += answer.finish.reason;
  })());
  return { requestId: Boolean(requestId), pieces, tokens, models, bad, left, seen, late };
}

async function withGoogles(baseUrl) {
  const client = new grpcWeb.GrpcWebClientBase({ format: "text" });
  const found = Service.method.generate;
  const path = "/" + Service.typeName + "/" + found.name;
  const about = new grpcWeb.MethodDescriptor(path, "server_streaming", Object, Object,
    (each) => toBinary(found.input, create(found.input, each)), (data) => fromBinary(found.output, data));
  const seen = await new Promise((resolve) => {
    let seen = 0;
    const call = client.serverStreaming(baseUrl + path, long, {}, about);
    call.on("data", () => { if (++seen === 3) { call.cancel(); resolve(seen); } });
    call.on("error", (error) => resolve(String(error)));
    call.on("end", () => resolve("the end, after " + seen));
  });
  const message = await new Promise((resolve) => {
    const call = client.serverStreaming(baseUrl + path, {}, {}, about);
    call.on("error", (error) => resolve([error.code, error.message]));
    call.on("end", () => resolve("the end"));
  });
  return { seen, message };
}

async function withFetch(baseUrl) {
  const body = JSON.stringify({ messages: [{ role: "user", content: "hello" }], max_tokens: 8, ignore_eos: true, stream: true });
  const headers = { "Content-Type": "application/json", Authorization: "Bearer unused" };
  const response = await fetch(baseUrl + "/v1/chat/completions", { method: "POST", headers, body });
  return { text: (await response.text()).slice(-14), requestId: Boolean(response.headers.get("x-request-id")) };
}

window.run = async (baseUrl) => ({
  connect: await withConnect(createConnectTransport({ baseUrl })),
  connectBinary: await withConnect(createConnectTransport({ baseUrl, useBinaryFormat: true })),
  grpcWeb: await withConnect(createGrpcWebTransport({ baseUrl })),
  googles: await withGoogles(baseUrl),
  fetch: await withFetch(baseUrl),
});
window.refused = async (baseUrl) => ({
  connect: await failure(createClient(Service, createConnectTransport({ baseUrl })).listModels({})),
  fetch: await withFetch(baseUrl).then(() => null, (error) => error.constructor.name),
  simple: await fetch(baseUrl + "/v1/models").then(() => null, (error) => error.constructor.name),
});
`;

async function listening(script, port) {
  const server = createServer((request, response) => {
    const isScript = request.url === "/page.js";
    response.setHeader("Content-Type", isScript ? "text/javascript" : "text/html");
    response.end(isScript ? script : "<!doctype html><script src=/page.js></script>");
  });
  await new Promise((resolve) => server.listen(port, "localhost", resolve));
  return server;
}

(async () => {
  const built = await esbuild.build({
    stdin: { contents: PAGE, resolveDir: folder, loader: "js" }, bundle: true, write: false, format: "iife", platform: "browser",
    define: { CONTRACT: JSON.stringify(readFileSync(contract).toString("base64")) },
  });
  const script = built.outputFiles[0].text;
  const { default: chromium } = await import(pathToFileURL(load.resolve("@sparticuz/chromium")));
  const servers = [await listening(script, Number(allowedPort)), await listening(script, 0)];
  const browser = await puppeteer.launch({
    args: ["--no-sandbox", "--disable-gpu"], executablePath: await chromium.executablePath(), headless: "shell",
  }).catch((error) => { console.error(error); process.exit(NO_BROWSER); });
  try {
    const told = { version: await browser.version() };
    for (const [name, call, server] of [["allowed", "run", servers[0]], ["stranger", "refused", servers[1]]]) {
      const page = await browser.newPage();
      await page.goto(`http://localhost:${server.address().port}/`);
      told[name] = await page.evaluate((call, url) => window[call](url), call, baseUrl);
    }
    process.stdout.write(JSON.stringify(told));
  } finally {
    await browser.close();
    for (const server of servers) server.close();
  }
})().catch((error) => { console.error(error); process.exit(1); });
