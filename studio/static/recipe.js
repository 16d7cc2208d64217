// The Recipe page: what the form shows and what is typed into it, presets and fixes, Start, the export, folding,
// finding.
(() => {
  "use strict";
  if (studio.panels.recipe) return;

  function download(name, text) {
    const url = URL.createObjectURL(new Blob([text], { type: "application/toml" }));
    const link = studio.h("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  const one = (selector) => document.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const settings = () => all("#recipe-form [data-setting]");

  // Folding and finding, which Python need not know of -------------------------------------------------

  const flip = (button, state) => {
    const on = button.getAttribute(state) !== "true";
    button.setAttribute(state, String(on));
    return on;
  };

  function textOf(field) {
    return `${field.textContent} ${field.querySelector("[id]").id.replaceAll("-", " ")}`.toLowerCase();
  }

  function jumpTo(field) {
    const name = field.querySelector("label").textContent.trim();
    return studio.h("button.link", { type: "button", onclick: () => field.querySelector("[data-setting]").focus() }, name);
  }

  // Only the settings with all the words in their name or help, or only those that are changed.
  function find() {
    const advanced = one("#recipe-advanced");
    const words = advanced.querySelector(".find input").value.toLowerCase().split(/\s+/).filter(Boolean);
    const changed = advanced.querySelector("[data-changed]").getAttribute("aria-pressed") === "true";
    const searching = words.length > 0 || changed;
    const fits = (field) => searching && (!changed || field.querySelector(".reset"))
      && words.every((word) => textOf(field).includes(word));
    advanced.classList.toggle("searching", searching);
    for (const field of all(".form-field", advanced)) field.classList.toggle("found", Boolean(fits(field)));
    for (const section of all(".form-section", advanced)) {
      section.classList.toggle("found", Boolean(section.querySelector(".form-field.found")));
    }
    const above = all("#recipe-form > .form-sections .form-field").filter(fits);
    const links = above.flatMap((field, n) => [n ? ", " : "Above: ", jumpTo(field)]);
    const nothing = searching && !links.length && !advanced.querySelector(".form-field.found");
    const said = advanced.querySelector("p.found");
    said.replaceChildren(...(nothing ? [changed ? "Nothing is changed." : "No setting has this in its name or help."] : links));
    said.hidden = !said.hasChildNodes();
  }

  const SMALL = {
    "[data-fold]": (button) => button.closest(".form-section").classList.toggle("open", flip(button, "aria-expanded")),
    "[data-changed]": (button) => { flip(button, "aria-pressed"); find(); },
    "[data-more]": (button) => button.closest("#recipe-presets").classList.toggle("all", flip(button, "aria-expanded")),
    ".form-field .info-text": (help) => help.classList.toggle("whole"),
  };

  // What the form shows --------------------------------------------------------------------------------

  // A list of known values beside a box: it shows which of them the box has.
  function mirror(input) {
    const list = one(`#recipe-form [data-fills="${input.dataset.setting}"]`);
    if (!list) return;
    list.value = input.value.trim();
    if (list.selectedIndex < 0) list.value = "";
  }

  /** Show a value. A box may show less than it was given, a line instead of several: what it had is kept. */
  function put(input, value) {
    if (input.type === "checkbox") input.checked = value;
    else input.value = value;
    input.given = value;
    input.had = input.value;
    mirror(input);
  }

  const shownIn = (input) => {
    if (input.type === "checkbox") return input.checked;
    return input.value === input.had ? input.given : input.value;
  };

  function say(element, html = "") {
    if (element.said !== html) element.innerHTML = element.said = html;
  }

  // Asking Python, one question at a time --------------------------------------------------------------

  let server, project = "", known = "";
  let line = Promise.resolve();
  let holding = 0, checking = false;

  function take(answer) {
    for (const input of answer.values ? settings() : []) {
      if (input.dataset.setting in answer.values) put(input, answer.values[input.dataset.setting]);
    }
    if (answer.project) one("#recipe-form").dataset.project = project = answer.project;
    if (answer.report !== undefined) say(one("#recipe-report"), answer.report);
    if (answer.answer !== undefined) say(one("#recipe-answer"), answer.answer);
    if (answer.known === undefined) return;
    known = answer.known;
    for (const input of settings()) {
      say(document.getElementById(input.id.replace(/input$/, "note")), answer.notes[input.dataset.setting]);
    }
    say(one("#recipe-presets"), answer.presets);
    say(one("#recipe-summary"), answer.summary);
    one("#recipe-start").disabled = !answer.ready;
  }

  /** Ask once the questions before it are answered, so with what they have changed. */
  function ask(name, more) {
    const asked = line.then(async () => {
      const values = Object.fromEntries(settings().map((input) => [input.dataset.setting, shownIn(input)]));
      const answer = await studio.call(server[name]({ project, values, known, ...more }));
      if (answer) take(answer);
      return answer;
    });
    line = asked.catch(() => {});
    return asked;
  }

  /** The same where the answer fills the form: until it has, nothing can be typed that it would write over. */
  async function fill(name, more) {
    one("#recipe-form").inert = Boolean(++holding);
    try {
      return await ask(name, more);
    } finally {
      one("#recipe-form").inert = Boolean(--holding) || !project;
    }
  }

  /** What was typed is checked as soon as the answer to what was typed before is there. */
  function check() {
    if (checking || !project) return;
    checking = true;
    line = line.then(() => { checking = false; });
    ask("check");
  }

  async function open() {
    const wanted = studio.project();
    if (!wanted || studio.step() !== "recipe") return;
    line = line.then(() => {
      if (wanted === project) return;
      project = ""; // what is typed from here on is another's
      delete one("#recipe-form").dataset.project;
    });
    if (await fill("open_recipe", { project: wanted })) studio.refreshBadges?.(); // the first time it makes one
  }

  async function start() {
    const answer = await fill("launch");
    if (answer?.run) studio.go("train");
  }

  async function files(kind) {
    await line; // what was typed is in them
    const answer = await studio.call((kind ? server.export_kohya : server.export)({ project }));
    for (const [name, text] of Object.entries(answer?.files ?? {})) download(name, text);
    if (answer?.said) studio.toast(answer.said, "info");
  }

  studio.brought = (report) => say(one("#recipe-report"), report);

  studio.panels.recipe = (functions) => {
    server = functions;
    // The stepper tells of the recipe too; it follows when typing pauses.
    let timer = 0;
    const soon = () => { clearTimeout(timer); timer = setTimeout(() => studio.refreshBadges?.(), 1500); };
    const typed = (input) => { mirror(input); check(); soon(); };
    document.addEventListener("input", ({ target }) => {
      if (target.closest("#recipe-page .find")) return find();
      // A base is looked up as a whole, not letter by letter.
      if (target.matches("#recipe-form [data-setting]") && !target.closest(".base")) typed(target);
    });
    document.addEventListener("change", ({ target }) => {
      const box = target.closest("#recipe-form .base")?.querySelector("[data-setting]");
      if (!box) return;
      if (target !== box && !target.value) return box.select();
      if (target !== box) box.value = target.value;
      typed(box);
    });
    document.addEventListener("click", (event) => {
      for (const [selector, act] of Object.entries(SMALL)) {
        const found = event.target.closest(`#recipe-page ${selector}`);
        if (found) return act(found);
      }
      const button = event.target.closest("#recipe-page :is(#recipe-start, [data-set], [data-preset], [data-card], [data-recipe], [data-export])");
      if (!button) return;
      soon();
      if (button.id === "recipe-start") return start();
      if (button.dataset.export !== undefined) return files(button.dataset.export);
      if (button.dataset.recipe === "") return button.closest(".brought").remove();
      if (button.dataset.recipe) return fill("press", JSON.parse(button.dataset.recipe));
      if (button.dataset.card) return fill("press", { card: Number(button.dataset.card) });
      if (button.dataset.preset) return fill("press", { preset: button.dataset.preset });
      return fill("press", { set: JSON.parse(button.dataset.set) });
    });
    // One may come to another step and another project at once.
    let due = false;
    const opens = () => {
      if (!due) queueMicrotask(() => { due = false; open(); });
      due = true;
    };
    studio.on("step", opens);
    studio.on("project", opens);
    let away = false;
    studio.on("live", ({ online }) => {
      if (online && away) project ? check() : open(); // what was typed meanwhile was not taken
      away = !online;
    });
  };
})();
