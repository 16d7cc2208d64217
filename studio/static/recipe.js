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
    const said = all("label, .info-text, .form-note", field).map((part) => part.textContent);
    return [...said, field.querySelector("[id]").id.replaceAll("-", " ")].join(" ").toLowerCase();
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

  // The base is looked up as a whole, not letter by letter, and has a list of known ones beside its box.
  const isBase = (input) => Boolean(input.closest(".base"));
  const listOf = (box) => box.closest(".base").querySelector("select");

  function mirror(box) {
    const list = listOf(box);
    list.value = box.value.trim();
    if (list.selectedIndex < 0) list.value = "";
  }

  /** Show a value. A box may show less than it was given, a line instead of several: what it was given is kept. */
  function put(input, value) {
    if (input.type === "checkbox") input.checked = value;
    else input.value = value;
    [input.given, input.shown] = [value, input.value];
    if (isBase(input)) mirror(input);
  }

  function valueOf(input) {
    if (input.type === "checkbox") return input.checked;
    return input.value === input.shown || isBase(input) ? input.given : input.value;
  }

  function say(element, html = "") {
    if (element.said === html) return;
    const open = all("details", element).map((details) => details.open);
    element.innerHTML = element.said = html;
    all("details", element).forEach((details, n) => { details.open ||= open[n] ?? false; });
  }

  // Asking Python, one question at a time --------------------------------------------------------------

  const PATIENCE = 20000; // ms: a laptop sleeps, a proxy drops a connection, and no answer comes ever
  let server, project = "", known = "", ready = false;
  let questions = Promise.resolve(); // each is asked once the one before is answered
  let filling = 0; // answers that are out and fill the form: what is typed meanwhile would be written over
  let checking = false; // a check waits for its turn
  let unsent = false; // an answer was lost, and what was typed may be too

  const ofAnother = () => project !== studio.project();

  function lock() {
    one("#recipe-form").inert = filling > 0;
    one("#recipe-page").inert = ofAnother();
    one("#recipe-start").disabled = !ready || filling > 0;
  }

  function take(answer) {
    if (answer.report !== undefined) say(one("#recipe-report"), answer.report);
    if (answer.answer !== undefined) say(one("#recipe-answer"), answer.answer);
    if (answer.known === undefined) return; // no more than that was said
    project = answer.project;
    one("#recipe-form").dataset.project = project;
    ({ known, ready } = answer);
    for (const input of settings()) {
      const path = input.dataset.setting;
      if (path in answer.values) put(input, answer.values[path]);
      say(document.getElementById(input.id.replace(/input$/, "note")), answer.notes[path]);
    }
    say(one("#recipe-presets"), answer.presets);
    say(one("#recipe-summary"), answer.summary);
    if (one("#recipe-advanced").classList.contains("searching")) find();
  }

  /** The answer, null where there is none: the question is called for when its turn comes. */
  function ask(name, question) {
    const turn = questions.then(async () => {
      const asked = server[name](question());
      const answer = await Promise.race([asked, new Promise((done) => setTimeout(done, PATIENCE))]).catch(() => null);
      if (name !== "open_recipe") unsent = !answer;
      return studio.call(answer);
    });
    const taken = turn.then((answer) => {
      if (answer) take(answer);
      return answer;
    });
    questions = taken.catch((error) => console.error(error)); // one that goes wrong is not the last
    return taken.finally(lock);
  }

  const typed = (more) => () => {
    const values = Object.fromEntries(settings().map((input) => [input.dataset.setting, valueOf(input)]));
    return { project, values, known, ...more };
  };

  function fill(name, question) {
    filling += 1;
    lock();
    return ask(name, question).finally(() => { filling -= 1; lock(); });
  }

  /** What was typed is checked as soon as the answer to what was typed before is there. */
  function check() {
    if (checking) return;
    checking = true;
    ask("check", () => {
      checking = false;
      return typed()();
    });
  }

  /** Show the project that is open; before that, what was typed and never taken is sent once more. */
  async function open() {
    const wanted = studio.project();
    if (!wanted || studio.step() !== "recipe") return;
    lock();
    if (unsent && !await fill("check", typed())) return;
    if (await fill("open_recipe", () => ({ project: wanted }))) studio.refreshBadges?.(); // the first time it makes one
  }

  async function start() {
    if (filling) return;
    const answer = await fill("launch", typed());
    if (answer?.run) studio.go("train");
  }

  async function files(kind) {
    if (!await ask("check", typed())) return;
    const answer = await studio.call((kind ? server.export_kohya : server.export)({ project }));
    for (const [name, text] of Object.entries(answer?.files ?? {})) download(name, text);
    if (answer?.said) studio.toast(answer.said, "info");
  }

  /** A button of our HTML that Python has to know of. */
  async function press(button, byKeys) {
    const { recipe, card, preset, set } = button.dataset;
    if (recipe === "") return say(one("#recipe-report"));
    if (recipe && filling) return undefined; // twice would make the way back one to what it has just brought
    const more = recipe ? JSON.parse(recipe) : card ? { card: Number(card) } : preset ? { preset } : { set };
    await fill("press", typed(more));
    // The button may be another now, or none: keys go on from where it was.
    if (!byKeys) return undefined;
    const there = set ? `[data-setting="${Object.keys(JSON.parse(set))[0]}"]` : preset && `[data-preset="${preset}"]`;
    return there && one(`#recipe-page ${there}`)?.focus();
  }

  /** Another base was chosen from the list, or typed. */
  function choose(control) {
    const box = control.closest(".base").querySelector("[data-setting]");
    if (control !== box && !control.value) return box.select();
    if (control !== box) box.value = control.value;
    mirror(box);
    if (box.value === box.shown) return undefined;
    box.given = box.shown = box.value;
    return fill("check", typed());
  }

  studio.brought = (report) => say(one("#recipe-report"), report);

  studio.panels.recipe = (functions) => {
    server = functions;
    // The stepper tells of the recipe too; it follows when typing pauses.
    let timer = 0;
    const soon = () => { clearTimeout(timer); timer = setTimeout(() => studio.refreshBadges?.(), 1500); };
    document.addEventListener("input", ({ target }) => {
      if (target.closest("#recipe-page .find")) return find();
      if (!target.matches("#recipe-form [data-setting]") || isBase(target)) return;
      check();
      soon();
    });
    // Arrow keys go through the list of bases one by one: the one they end at is chosen.
    let passing = false;
    const inBase = (target) => target.closest?.("#recipe-form .base :is(select, input)");
    document.addEventListener("pointerdown", () => { passing = false; });
    document.addEventListener("keydown", ({ target, key }) => {
      if (!inBase(target)) return;
      passing = key !== "Enter";
      if (key === "Enter" && (target.value || target.matches("input"))) choose(target);
    });
    document.addEventListener("change", ({ target }) => {
      if (!inBase(target) || passing && target.matches("select")) return;
      choose(target);
      soon();
    });
    document.addEventListener("focusout", ({ target }) => {
      if (!inBase(target)) return;
      if (target.matches("select") && target.value) choose(target);
      mirror(target.closest(".base").querySelector("[data-setting]"));
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
      return press(button, event.detail === 0);
    });
    // One may come to another step and another project at once.
    let due = false;
    const opens = () => {
      if (!due) queueMicrotask(() => { due = false; open(); });
      due = true;
    };
    studio.on("step", opens);
    studio.on("project", opens);
    // What an answer was lost of is asked for again, less and less often.
    let rest = 0, pause = 1;
    studio.on("live", ({ online }) => {
      if (!unsent && !ofAnother()) [rest, pause] = [0, 1];
      else if (online && !filling && !checking && --rest < 0) {
        [rest, pause] = [pause, Math.min(30, 2 * pause)];
        ofAnother() ? open() : check();
      }
    });
  };
})();
