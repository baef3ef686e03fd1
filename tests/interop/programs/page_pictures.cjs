// Takes the pictures of the page that the documents show, from a running gateway with nothing else to do.
// Arguments: the folder of the packages; the gateway's address; Chromium's path, or nothing for that of the packages; where to.

const { createRequire } = require("node:module");
const path = require("node:path");
const { pathToFileURL } = require("node:url");

const [folder, url, chromiumPath, into] = process.argv.slice(2);
const load = createRequire(path.join(folder, "node_modules", "x.cjs"));
const puppeteer = load("puppeteer-core");
const QUESTION = "What is the capital of France, and what is it known for?";
const OTHERS = ["Tell me a story about the sea.", "Write a poem about rivers.", "Explain gravity to a child.", "List the planets.", "Describe a forest in autumn."];

/** Requests beside it, so that there is something to see. */
function others(count, tokens) {
  const body = (content) => JSON.stringify({ messages: [{ role: "user", content }], max_tokens: tokens, temperature: 1, ignore_eos: true });
  const headers = { "Content-Type": "application/json" };
  return OTHERS.slice(0, count).map((content) => fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: body(content) }));
}

async function taken(browser, name, scheme, viewport) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  await page.setViewport(viewport);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(url, { waitUntil: "load" });
  await page.waitForFunction(() => document.querySelector("#model").value !== "");
  await page.evaluate(() => {
    for (const [id, value] of [["temperature", "0.9"], ["seed", "4"], ["max-tokens", "70"]]) {
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event("input", { bubbles: true }));
    }
  });
  const beside = others(viewport.isMobile ? 2 : OTHERS.length, 120);
  await page.type("#prompt", QUESTION);
  await page.keyboard.press("Enter");
  await page.waitForSelector(".actions", { timeout: 120_000 });
  await page.evaluate(() => document.activeElement.blur());
  const index = await page.$$eval(".token", (all) => {
    const shares = all.map((each) => Number(each.dataset.tint));
    return shares.findIndex((each, i) => i > 8 && each >= 4 && each <= 8 && all[i].textContent.trim().length > 3);
  });
  await (await page.$$(".token"))[Math.max(0, index)].hover();
  await new Promise((done) => setTimeout(done, 400));
  await page.screenshot({ path: path.join(into, `${name}.png`) });
  if (viewport.isMobile) {
    await page.tap("#show-live");
    await new Promise((done) => setTimeout(done, 1500));
    await page.screenshot({ path: path.join(into, `${name}-engine.png`) });
  }
  for (const each of await Promise.all(beside)) await each.text();
  await context.close();
}

(async () => {
  const executablePath = chromiumPath || (await (await import(pathToFileURL(load.resolve("@sparticuz/chromium")))).default.executablePath());
  const browser = await puppeteer.launch({ args: ["--no-sandbox", "--disable-gpu"], executablePath, headless: chromiumPath ? true : "shell" });
  await taken(browser, "page", "light", { width: 1280, height: 820 });
  await taken(browser, "page-dark", "dark", { width: 1280, height: 820 });
  await taken(browser, "page-phone", "dark", { width: 390, height: 760, isMobile: true, hasTouch: false });
  await browser.close();
})();
