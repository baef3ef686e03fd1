// Drives the gateway's page in Chromium: asked, stopped, failed, by keyboard. Arguments: as of page_driver.cjs.

const { readFileSync } = require("node:fs");
const { adminKey, ask, askingUrl, drive, ended, load, NARROW, opened, text, url, WIDE } = require("./page_driver.cjs");

const AXE = readFileSync(load.resolve("axe-core/axe.min.js"), "utf8");

drive({
  async ask(browser) {
    const { page, complaints, close } = await opened(browser, url);
    const focused = await page.evaluate(() => document.activeElement.id);
    await ask(page, "one two three");
    await page.hover(".token:nth-of-type(2)");
    const found = {
      focused, complaints,
      said: await text(page, ".said"),
      answer: await text(page, ".answer .text"),
      tokens: await page.$$eval(".token", (all) => all.map((each) => each.textContent)),
      figures: await text(page, ".figures"),
      peek: await text(page, "#peek"),
      announced: await page.$eval("#announcer", (each) => each.textContent),
      busy: await page.$eval(".answer", (each) => each.getAttribute("aria-busy")),
      sources: await page.evaluate(() => performance.getEntriesByType("resource").map((each) => new URL(each.name).origin)),
      stored: await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie, location.search + location.hash]),
    };
    await ask(page, "four", { wait: false });
    await ended(page, 2);
    found.second = await page.$$eval(".answer .text", (all) => all.at(-1).textContent);
    await page.click("#clear");
    found.cleared = await page.$$eval("#messages li", (all) => all.length);
    await close();
    return found;
  },

  async stream(browser) {
    const { page, close } = await opened(browser, url);
    await ask(page, "!hold first second", { wait: false });
    await page.waitForSelector(".token");
    const found = { during: await text(page, ".answer .text"), busy: await page.$eval(".answer", (each) => each.getAttribute("aria-busy")) };
    await page.keyboard.press("Escape");
    await ended(page);
    found.byKey = await text(page, ".figures");
    await ask(page, "!hold third", { wait: false });
    await page.waitForFunction(() => document.querySelectorAll(".answer")[1]?.querySelector(".token"));
    await page.click("#stop-button");
    await ended(page, 2);
    found.byButton = await page.$$eval(".figures", (all) => all.at(-1).innerText);
    found.focused = await page.evaluate(() => document.activeElement.id);
    await close();
    return found;
  },

  async errors(browser) {
    const { page, close } = await opened(browser, url);
    await ask(page, "!bad a");
    const found = { bad: await text(page, ".failure"), role: await page.$eval(".failure", (each) => each.getAttribute("role")) };
    await page.click(".actions button");
    await page.waitForFunction(() => document.querySelector(".answer:not(.busy) .failure"));
    found.again = await page.$$eval(".answer", (all) => all.length);
    await page.click("#clear");
    await ask(page, "!down a");
    found.down = await text(page, ".failure");
    await page.click("#clear");
    await page.click("#settings summary");
    await page.type("#temperature", "-3");
    await ask(page, "hello", { wait: false });
    found.invalid = [await text(page, "#notice"), await page.evaluate(() => [document.activeElement.id, document.activeElement.getAttribute("aria-invalid")])];
    found.answers = await page.$$eval(".answer", (all) => all.length);
    await close();
    return found;
  },

  async follow(browser) {
    const { page, close } = await opened(browser, url);
    const found = { empty: await page.evaluate(() => [document.documentElement.scrollHeight, innerHeight]), ends: [] };
    for (let count = 1; count <= 3; count++) {
      await ask(page, `${count} ${"many words in a row ".repeat(60)}`, { wait: false });
      await ended(page, count);
      found.ends.push(await page.$eval("#conversation", (each) => each.scrollHeight - each.scrollTop - each.clientHeight));
    }
    found.full = await page.evaluate(() => [document.documentElement.scrollHeight, innerHeight]);
    await page.$eval("#conversation", (each) => (each.scrollTop = 0));
    found.scrolls = await page.$eval("#conversation", (each) => each.scrollHeight > 2 * each.clientHeight);
    await close();
    return found;
  },

  async settings(browser) {
    const { page, sent, close } = await opened(browser, url);
    await page.click("#settings summary");
    await page.type("#temperature", "0.15");
    await page.type("#top-p", "0.955");
    await page.type("#seed", "18446744073709551615");
    await ask(page, "!bad a");
    await ask(page, "kept", { wait: false });
    await ended(page, 2);
    await ask(page, "after", { wait: false });
    await ended(page, 3);
    const found = { sent };
    await page.$eval("#max-tokens", (field) => (field.value = "99999999999"));
    await ask(page, "too many", { wait: false });
    found.invalid = await text(page, "#notice");
    await close();
    return found;
  },

  async silent(browser) {
    const onePicture = () => {
      const fetched = window.fetch;
      window.fetch = async (address, options) => {
        const response = await fetched(address, options);
        if (address !== "/live") return response;
        const { value } = await response.body.getReader().read();
        return new Response(new ReadableStream({ start: (stream) => stream.enqueue(value) }));
      };
    };
    const { page, close } = await opened(browser, url, { before: onePicture });
    const found = {};
    for (const state of ["live", "off"]) {
      await page.waitForFunction((name) => document.querySelector("#live-state").dataset.state === name, {}, state);
      found[state] = await text(page, "#live-state");
    }
    await close();
    return found;
  },

  async markup(browser) {
    const { page, close } = await opened(browser, url);
    const hostile = `<img src=x onerror=window.owned=1> <script>window.owned=1</script> <svg/onload=window.owned=1>`;
    await ask(page, hostile);
    const found = { answer: await text(page, ".answer .text") };
    await page.hover(".token");
    await page.focus(".token");
    await ask(page, "!markup a", { wait: false });
    await ended(page, 2);
    found.failure = await text(page, ".failure");
    await new Promise((done) => setTimeout(done, 200));
    found.elements = await page.$$eval("#messages :is(img, script, svg), #peek :is(img, script, svg)", (all) => all.length);
    found.owned = await page.evaluate(() => window.owned ?? null);
    found.forced = await page.evaluate(() => {
      try {
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=window.owned=2>");
        return "taken";
      } catch (error) {
        return error.name;
      }
    });
    await close();
    return { ...found, hostile };
  },

  async keyboard(browser) {
    const { page, close } = await opened(browser, url);
    await page.keyboard.type("alpha beta gamma");
    await page.keyboard.press("Enter");
    await ended(page);
    const back = async (matches) => {
      for (let i = 0; i < 25; i++) {
        await page.keyboard.down("Shift");
        await page.keyboard.press("Tab");
        await page.keyboard.up("Shift");
        if (await page.evaluate((selector) => document.activeElement.matches(selector), matches)) return i + 1;
      }
      return null;
    };
    const found = { toTokens: await back(".token") };
    const at = () => page.evaluate(() => document.activeElement.textContent);
    const visible = () => page.$eval("#peek", (each) => !each.hidden);
    found.first = [await at(), await visible()];
    await page.keyboard.press("ArrowRight");
    found.next = [await at(), await page.$eval("#announcer", (each) => each.textContent)];
    await page.keyboard.press("End");
    found.last = await at();
    found.outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    await page.keyboard.press("Escape");
    found.hidden = !(await visible());
    found.toSettings = await back("summary");
    await page.keyboard.press("Enter");
    found.open = await page.$eval("#settings", (each) => each.open);
    for (let i = 0; i < 40 && !(await page.evaluate(() => document.activeElement.matches(".actions button"))); i++) await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.activeElement.id === "prompt");
    await ended(page);
    found.again = await text(page, ".answer .text");
    await close();
    return found;
  },

  async narrow(browser) {
    const { page, close } = await opened(browser, url, { view: NARROW });
    await ask(page, "a rather long message that does not fit the width of a telephone ".repeat(4) + "w".repeat(200));
    const inside = () => page.evaluate(() => [document.documentElement.scrollWidth, innerWidth, document.querySelector("#send").getBoundingClientRect().bottom <= innerHeight]);
    const shown = () => page.evaluate(() => ["#chat", "#live"].map((each) => document.querySelector(each).checkVisibility()));
    const found = { chat: await inside(), chatShown: await shown() };
    await page.tap(".token");
    found.peek = await page.$eval("#peek", (each) => [!each.hidden, each.getBoundingClientRect().right <= innerWidth]);
    await page.tap("#show-live");
    await page.waitForFunction(() => document.querySelector("#live-state").dataset.state === "live");
    found.live = (await inside()).slice(0, 2);
    found.liveShown = await shown();
    await page.tap("#show-chat");
    await page.tap("#settings summary");
    found.settings = (await inside()).slice(0, 2);
    await close();
    return found;
  },

  async live(browser) {
    const { page, complaints, close } = await opened(browser, url);
    await page.waitForFunction(() => document.querySelector("#model-tiers dd")?.textContent === "5");
    const found = { tier: await text(page, "#model-tiers"), tokenizers: await text(page, "#tokenizers"), complaints };
    found.cells = await page.$$eval(".blocks i", (all) => [all.length, all.filter((each) => each.className === "used").length, all.filter((each) => each.className === "cached").length]);
    found.slots = await page.$$eval(".slots i", (all) => [all.length, all.filter((each) => each.className === "on").length, all.filter((each) => each.className === "wait").length]);
    await ask(page, "!hold one", { wait: false });
    await page.waitForFunction(() => document.querySelectorAll("#open tbody tr").length === 1);
    await page.click("#stop-button");
    await page.waitForFunction(() => !document.querySelector("#recent").hidden && document.querySelector("#open").hidden);
    found.recent = await text(page, "#recent tbody");
    await page.click("#live-pause");
    found.paused = await text(page, "#live-state");
    await close();
    return found;
  },

  async key(browser) {
    const { page, close } = await opened(browser, askingUrl);
    await page.waitForFunction(() => !document.querySelector("#live-hint").hidden);
    const found = { notice: await text(page, "#notice"), hint: await text(page, "#live-hint"), open: await page.$eval("#settings", (each) => each.open) };
    await page.type("#key", adminKey);
    await page.keyboard.press("Tab");
    await page.waitForFunction(() => document.querySelector("#model").value === "echo" && document.querySelector("#live-state").dataset.state === "live");
    await ask(page, "hello there");
    found.answer = await text(page, ".answer .text");
    found.stored = await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
    await page.reload({ waitUntil: "load" });
    found.afterwards = await page.$eval("#key", (each) => each.value);
    await close();
    return found;
  },

  async accessible(browser) {
    const found = {};
    for (const scheme of ["light", "dark"]) {
      for (const [name, view] of Object.entries({ wide: WIDE, narrow: NARROW })) {
        const { page, close } = await opened(browser, url, { view, scheme, bypass: true });
        await page.evaluate(AXE);
        const look = async (what) => {
          const { violations } = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
          found[`${scheme} ${name} ${what}`] = violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.target.join(" ")).join(", ")}`);
        };
        await look("empty");
        await ask(page, "one two three");
        await ask(page, "!bad a", { wait: false });
        await ended(page, 2);
        await page.$eval("#settings", (each) => (each.open = true));
        await look("answered");
        if (name === "narrow") await page.tap("#show-live");
        await page.waitForFunction(() => document.querySelector("#live-state").dataset.state === "live");
        await look("engine");
        found[`${scheme} ${name} ground`] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        await close();
      }
    }
    return found;
  },
});
