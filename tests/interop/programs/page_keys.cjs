// Drives the gateway's page in Chromium: keys that cannot be sent, are wrong, or are taken away. Arguments: as of page_driver.cjs.

const { readFileSync, writeFileSync } = require("node:fs");
const { adminKey, ask, askingUrl, drive, identityFile, opened, text, url } = require("./page_driver.cjs");

/** What the page does again after seconds it does at once. The 5 s in which pictures have to come stay. */
const hurried = () => {
  const inTime = window.setTimeout.bind(window);
  window.setTimeout = (work, milliseconds, ...rest) => inTime(work, milliseconds >= 2000 && milliseconds !== 5000 ? 50 : milliseconds, ...rest);
};

async function enter(page, key) {
  await page.$eval("#settings", (each) => (each.open = true));
  await page.$eval("#key", (field) => (field.value = ""));
  await page.type("#key", key);
  await page.keyboard.press("Tab");
}

const isLive = (page) => page.waitForFunction(() => document.querySelector("#live-state").dataset.state === "live");
const hints = (page, words) => page.waitForFunction((part) => document.querySelector("#live-hint").checkVisibility() && document.querySelector("#live-hint").innerText.includes(part), {}, words);

drive({
  async unsendable(browser) {
    const { page, close } = await opened(browser, url, { before: hurried });
    await isLive(page);
    await enter(page, "ключ");
    await page.waitForFunction(() => document.querySelector("#live-state").dataset.state !== "live" && !document.querySelector("#notice").hidden);
    const requests = [];
    page.on("request", (request) => requests.push(request.url()));
    const found = { requests, invalid: await page.$eval("#key", (each) => each.getAttribute("aria-invalid")), notice: await text(page, "#notice"), hint: await text(page, "#live-hint") };
    await ask(page, "hello", { wait: false });
    await new Promise((done) => setTimeout(done, 500));
    found.focused = await page.evaluate(() => document.activeElement.id);
    found.answers = await page.$$eval(".answer", (all) => all.length);
    found.requests = [...requests];
    await enter(page, "tw-ascii");
    await page.waitForFunction(() => document.querySelector("#model").value === "echo");
    await isLive(page);
    found.afterwards = await page.evaluate(() => [document.querySelector("#key").getAttribute("aria-invalid"), document.querySelector("#notice").hidden]);
    await close();
    return found;
  },

  async wrong(browser) {
    const { page, close } = await opened(browser, askingUrl);
    const found = { none: await text(page, "#notice") };
    await enter(page, "tw-wrong");
    await hints(page, "not known here");
    await page.waitForFunction((before) => document.querySelector("#notice").innerText !== before, {}, found.none);
    found.notice = await text(page, "#notice");
    found.hint = await text(page, "#live-hint");
    await ask(page, "hello");
    found.failure = await text(page, ".failure");
    await close();
    return found;
  },

  async restored(browser) {
    const { page, close } = await opened(browser, askingUrl, { before: hurried });
    await enter(page, adminKey);
    await isLive(page);
    const whole = readFileSync(identityFile, "utf8");
    const file = JSON.parse(whole);
    writeFileSync(identityFile, JSON.stringify({ ...file, keys: file.keys.filter((each) => each.name !== "root") }));
    await hints(page, "not known here");
    const found = { revoked: [await text(page, "#live-state"), await text(page, "#live-hint")] };
    writeFileSync(identityFile, whole);
    await isLive(page);
    found.restored = await text(page, "#live-state");
    await close();
    return found;
  },
});
