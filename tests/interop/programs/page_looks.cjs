// Drives the gateway's page in Chromium: what can be seen and pointed at, whatever the tokens, the times and the system's colours.
// Arguments: as of page_driver.cjs.

const { ask, drive, ended, opened, text, url } = require("./page_driver.cjs");

const DOT = 4; // pixels from its left to the middle of a state's dot

/** A page of which the system's own few colours are asked for. */
async function contrasted(browser, scheme) {
  const one = await opened(browser, url);
  const devtools = await one.page.createCDPSession();
  await devtools.send("Emulation.setEmulatedMedia", { features: [{ name: "forced-colors", value: "active" }, { name: "prefers-color-scheme", value: scheme }] });
  return one;
}

/** The colours in the middle of elements, or so far from the left, by selector; and of the ground. */
async function coloursOf(browser, page, selectors, fromLeft = null) {
  const points = await page.evaluate((all, indent) => all.map((selector) => {
    const element = document.querySelector(selector);
    element.scrollIntoView({ block: "nearest" });
    const box = element.getBoundingClientRect();
    return [selector, box.left + (indent ?? box.width / 2), box.top + box.height / 2];
  }), selectors, fromLeft);
  const png = await page.screenshot({ encoding: "base64" });
  const reader = await browser.newPage();
  const found = await reader.evaluate(async (data, places) => {
    const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const at = (x, y) => [...canvas.getImageData(Math.round(x), Math.round(y), 1, 1).data].slice(0, 3).join();
    return Object.fromEntries([...places.map(([name, x, y]) => [name, at(x, y)]), ["ground", at(image.width / 2, image.height / 4)]]);
  }, png, points);
  await reader.close();
  return found;
}

drive({
  async bytes(browser) {
    const { page, close } = await opened(browser, url);
    await ask(page, "!bytes é 中🎉");
    const found = { tokens: await page.$$eval(".token", (all) => all.map((each) => each.textContent)) };
    found.sizes = await page.$$eval(".token", (all) => all.map((each) => each.getBoundingClientRect().width));
    await page.hover(".token.empty");
    found.rows = await page.$$eval("#peek .name", (all) => all.map((each) => each.innerText.replace(/\s+/g, " ")));
    await page.focus(".token[tabindex='0']");
    await page.keyboard.press("Home");
    found.reached = [];
    for (const _ of found.tokens) {
      found.reached.push(await page.$eval("#peek .about", (each) => each.checkVisibility() && each.innerText.split(" · ")[0]));
      await page.keyboard.press("ArrowRight");
    }
    found.announced = await text(page, "#announcer");
    found.copied = await page.evaluate(() => {
      getSelection().selectAllChildren(document.querySelector(".answer .text"));
      return getSelection().toString();
    });
    await close();
    return found;
  },

  async times(browser) {
    const { page, close } = await opened(browser, url);
    await ask(page, "!timed a b");
    const found = { legend: await text(page, ".answer .legend") };
    await ask(page, "!hold one", { wait: false });
    await page.waitForFunction(() => document.querySelectorAll(".answer")[1]?.querySelector(".token"));
    await page.click("#stop-button");
    await ended(page, 2);
    const cells = () => [...document.querySelectorAll("#recent tbody tr")].map((row) => [row.cells[1].textContent, row.cells[1].querySelectorAll(".phases i").length, row.cells[2].textContent]);
    await page.waitForFunction(() => [...document.querySelectorAll("#recent tbody tr")].some((row) => row.textContent.includes("cancelled")));
    const rows = await page.evaluate(cells);
    found.cancelled = rows.find((row) => row[2] === "cancelled");
    found.timed = rows.find((row) => row[1] > 0);
    await close();
    return found;
  },

  async long(browser) {
    const { page, close } = await opened(browser, url);
    await ask(page, "!long a");
    const found = { failure: await text(page, ".failure") };
    await close();
    return found;
  },

  async contrast(browser) {
    const found = {};
    for (const scheme of ["light", "dark"]) {
      const { page, close } = await contrasted(browser, scheme);
      await page.waitForFunction(() => document.querySelector("#model-tiers dd")?.textContent === "5");
      await ask(page, "!timed one two three");
      await page.waitForSelector("#recent .phases .decode");
      const lines = (property) => page.$$eval(".token", (all, name) => all.map((each) => getComputedStyle(each)[name]), property);
      const one = (found[scheme] = { tints: await page.$$eval(".token", (all) => all.map((each) => each.dataset.tint)), underlines: await lines("textDecorationLine") });
      one.batch = await coloursOf(browser, page, [".slots .on", ".slots .wait", ".slots i:not([class])"]);
      one.blocks = await coloursOf(browser, page, [".blocks .used", ".blocks .cached", ".blocks i:not([class])"]);
      one.legend = await coloursOf(browser, page, ["tokenize", "queue", "prefill", "decode", "rest"].map((name) => `#phases .${name}`));
      one.phases = await coloursOf(browser, page, ["queue", "prefill", "decode"].map((name) => `.answer .phases .${name}`));
      one.state = await coloursOf(browser, page, ["#live-state"], DOT);
      await page.select("#colour", "boundaries");
      one.boundaries = await lines("borderLeftWidth");
      await close();
    }
    return found;
  },
});
