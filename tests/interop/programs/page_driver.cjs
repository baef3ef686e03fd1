// What the programs that drive the gateway's page share: a browser, a page of its own for each scenario, and how one asks.
// Arguments of each: the folder of the packages; the page over a tier that echoes; the page of a gateway that asks who calls;
// an admin's key; the identity file; Chromium's path, or nothing for that of the packages.

const { createRequire } = require("node:module");
const path = require("node:path");
const { pathToFileURL } = require("node:url");

const [folder, url, askingUrl, adminKey, identityFile, chromiumPath] = process.argv.slice(2);
const load = createRequire(path.join(folder, "node_modules", "x.cjs"));
const puppeteer = load("puppeteer-core");
const WIDE = { width: 1280, height: 800 };
const NARROW = { width: 360, height: 740, isMobile: true, hasTouch: true };

async function browserOf() {
  let executablePath = chromiumPath;
  try {
    if (!executablePath) executablePath = await (await import(pathToFileURL(load.resolve("@sparticuz/chromium")))).default.executablePath();
    return await puppeteer.launch({ args: ["--no-sandbox", "--disable-gpu"], executablePath, headless: chromiumPath ? true : "shell" });
  } catch (error) {
    console.error(String(error));
    process.exit(3);
  }
}

/** A page of its own, and what it complains of. */
async function opened(browser, address, { view = WIDE, scheme = "light", bypass = false, before = () => {} } = {}) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  const complaints = [], sent = [];
  page.on("request", (request) => request.url().endsWith("/Chat") && sent.push(request.postData() ?? ""));
  await page.evaluateOnNewDocument(before);
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  await page.setBypassCSP(bypass);
  await page.setViewport(view);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(address, { waitUntil: "load" });
  await page.waitForFunction(() => document.querySelector("#model").value !== "" || !document.querySelector("#notice").hidden);
  return { page, complaints, sent, close: () => context.close() };
}

const text = (page, selector) => page.$eval(selector, (element) => element.innerText);
const ended = (page, count = 1) => page.waitForFunction((n) => document.querySelectorAll(".answer:not(.busy)").length >= n && document.querySelector(".actions"), {}, count);

async function ask(page, words, { wait = true } = {}) {
  await page.focus("#prompt");
  await page.keyboard.type(words);
  await page.keyboard.press("Enter");
  if (wait) await ended(page);
}

/** Run them all and print what they found, as JSON. Ends the process with 3 where Chromium does not start. */
async function drive(scenarios) {
  const browser = await browserOf();
  const found = {};
  for (const [name, scenario] of Object.entries(scenarios)) {
    try {
      found[name] = await scenario(browser);
    } catch (error) {
      found[name] = { failed: String(error.stack ?? error) };
    }
  }
  await browser.close();
  console.log(JSON.stringify(found));
}

module.exports = { adminKey, ask, askingUrl, drive, ended, identityFile, load, NARROW, opened, text, url, WIDE };
