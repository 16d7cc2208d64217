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
    const inHand = (field) => field.classList.contains("found") && field.contains(document.activeElement);
    const fits = (field) => searching && (!changed || field.querySelector(".reset") || inHand(field))
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

  function tellWhetherAll() {
    one("#recipe-presets [data-more]")?.setAttribute("aria-expanded", String(one("#recipe-presets").classList.contains("all")));
  }

  const SMALL = {
    "[data-fold]": (button) => button.closest(".form-section").classList.toggle("open", flip(button, "aria-expanded")),
    "[data-changed]": (button) => { flip(button, "aria-pressed"); find(); },
    "[data-more]": () => { one("#recipe-presets").classList.toggle("all"); tellWhetherAll(); },
    ".form-field .info-text": (help) => help.classList.toggle("whole"),
  };

  // What the form shows --------------------------------------------------------------------------------

  // The base is looked up as a whole, not letter by letter, and has a list of known ones beside its box.
  const isBase = (input) => Boolean(input.closest(".base"));

  function mirror(box) {
    const list = box.closest(".base").querySelector("select");
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

  /** Put HTML there, unless it is there; what was unfolded and what had the focus stays so. */
  function say(element, html = "") {
    if (element.said === html) return;
    const open = all("details", element).map((details) => details.open);
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    const data = JSON.stringify(focused?.dataset ?? {}), place = all("button", element).indexOf(focused);
    element.innerHTML = element.said = html;
    all("details", element).forEach((details, n) => { details.open ||= open[n] ?? false; });
    const buttons = all("button", element);
    if (focused) (buttons.find((button) => JSON.stringify(button.dataset) === data) ?? buttons[place])?.focus();
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
    one("#recipe-form").ariaBusy = String(filling > 0);
    one("#recipe-page").inert = ofAnother();
    one("#recipe-start").disabled = !ready || filling > 0;
  }

  /** Show an answer; what was typed since the question was asked stays. */
  function take(answer, asked) {
    if (answer.report !== undefined) say(one("#recipe-report"), answer.report);
    if (answer.answer !== undefined) say(one("#recipe-answer"), answer.answer);
    if (answer.known === undefined) return; // no more than that was said
    project = answer.project;
    one("#recipe-form").dataset.project = project;
    ({ known, ready } = answer);
    for (const input of settings()) {
      const path = input.dataset.setting;
      const edited = asked && asked[path] !== valueOf(input);
      if (path in answer.values && !edited) put(input, answer.values[path]);
      say(document.getElementById(input.id.replace(/input$/, "note")), answer.notes[path]);
    }
    say(one("#recipe-presets"), answer.presets);
    tellWhetherAll();
    say(one("#recipe-summary"), answer.summary);
    if (one("#recipe-advanced").classList.contains("searching")) find();
  }

  /** The answer, null where there is none: the question is called for when its turn comes. */
  function ask(name, question) {
    const turn = questions.then(async () => {
      const message = question();
      const late = new Promise((done) => setTimeout(done, PATIENCE));
      const came = await Promise.race([server[name](message), late]).catch(() => null);
      if (name !== "open_recipe") unsent = !came;
      if (!came && name === "press") [project, unsent] = ["", false]; // what it did is not known: it is opened again
      const answer = await studio.call(came);
      if (answer) take(answer, message.values);
      return answer;
    });
    questions = turn.catch((error) => console.error(error)); // one that goes wrong is not the last
    return turn.finally(lock);
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

  /** Show the project that is open. What was typed goes with it: it may not have been taken, or be wrong yet. */
  async function open() {
    const wanted = studio.project();
    if (!wanted || studio.step() !== "recipe") return;
    lock();
    if (!ofAnother()) return void fill("check", typed({ fresh: true }));
    if (unsent && !await fill("check", typed())) return;
    if (await fill("open_recipe", () => ({ project: wanted }))) studio.refreshBadges?.(); // the first time it makes one
  }

  async function start() {
    if (filling) return;
    const asked = studio.project();
    const answer = await fill("launch", typed());
    if (asked !== studio.project() || studio.step() !== "recipe") return;
    if (answer?.run) studio.go("train");
    else one("#recipe-start").focus();
  }

  async function files(kind) {
    const asked = project;
    if (!await ask("check", typed())) return;
    const answer = await studio.call((kind ? server.export_kohya : server.export)({ project: asked }));
    for (const [name, text] of Object.entries(answer?.files ?? {})) download(name, text);
    if (answer?.said) studio.toast(answer.said, "info");
    if (answer && one("#recipe-form .say.error")) studio.toast("What is marked in red is not in the file; it has the values before.", "warn");
  }

  /** A button of our HTML that Python has to know of. */
  async function press(button, byKeys) {
    const { recipe, card, preset, set } = button.dataset;
    if (recipe === "") return say(one("#recipe-report"));
    if (recipe && filling) return undefined; // twice would make the way back one to what it has just brought
    const more = recipe ? JSON.parse(recipe) : card ? { card: Number(card) } : preset ? { preset } : { set };
    await fill("press", typed(more));
    // A button in the form is locked with it, and gone: keys go on from its setting.
    if (byKeys && set) one(`#recipe-form [data-setting="${Object.keys(JSON.parse(set))[0]}"]`)?.focus();
    return undefined;
  }

  /** Another base was chosen from the list, or typed. */
  function choose(control) {
    const box = control.closest(".base").querySelector("[data-setting]");
    if (control !== box && !control.value) return box.select();
    if (control !== box) box.value = control.value;
    mirror(box);
    if (box.value === box.shown) return undefined;
    box.given = box.shown = box.value;
    return ask("check", typed());
  }

  // Recipes that are dropped belong to the project that was open then, whichever is when they are read.
  let target = "";
  for (const happening of ["drop", "change"]) {
    document.addEventListener(happening, (event) => { if (event.target.closest?.("#recipe-import")) target = studio.project(); }, true);
  }
  studio.recipeDroppedInto = () => target;
  studio.brought = (report) => {
    if (target === studio.project()) say(one("#recipe-report"), report);
    else studio.toast("The recipe was dropped into another project; open that, and drop it again.", "warn");
  };

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
    let passing = false, unfolded = false;
    const inBase = (target) => target.closest?.("#recipe-form .base :is(select, input)");
    document.addEventListener("pointerdown", () => { passing = unfolded = false; });
    document.addEventListener("keydown", ({ target, key, altKey }) => {
      if (!inBase(target)) return;
      unfolded ||= altKey || key === " " || key === "F4";
      passing = !unfolded && key !== "Enter";
      if (key === "Enter" && (target.value || target.matches("input"))) choose(target);
    });
    document.addEventListener("change", ({ target }) => {
      if (!inBase(target) || passing && target.matches("select")) return;
      unfolded = false;
      choose(target);
      soon();
    });
    document.addEventListener("focusout", ({ target }) => {
      if (!inBase(target)) return;
      unfolded = false;
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
      const owed = studio.step() === "recipe" && studio.project() && (unsent || ofAnother());
      if (!owed) [rest, pause] = [0, 1];
      else if (online && !filling && !checking && --rest < 0) {
        [rest, pause] = [pause, Math.min(30, 2 * pause)];
        if (ofAnother()) open();
        else check();
      }
    });
  };
})();
