// The Recipe page: buttons inside our HTML (presets, fixes, back to the preset), the export, folding, finding.
(() => {
  "use strict";
  if (studio.panels.recipe) return;

  function download(name, text) {
    const url = URL.createObjectURL(new Blob([text], { type: "application/toml" }));
    const link = studio.h("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // While an answer is out that fills the form, nothing can be typed into it.
  let patience = 0;
  studio.recipe = {
    hold(values) {
      document.querySelector("#recipe-form").inert = true;
      clearTimeout(patience);
      patience = setTimeout(studio.recipe.release, 20000); // no answer: better to type than to wait for ever
      return values;
    },
    release() {
      clearTimeout(patience);
      document.querySelector("#recipe-form").inert = false;
    },
  };

  // Folding, finding, and the other small things that Python need not know of -------------------------

  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const flip = (button, state) => {
    const on = button.getAttribute(state) !== "true";
    button.setAttribute(state, String(on));
    return on;
  };

  function textOf(field) {
    return `${field.textContent} ${field.querySelector("[id]").id.replaceAll("-", " ")}`.toLowerCase();
  }

  function jumpTo(field) {
    const name = field.querySelector('[data-testid="block-info"], .label-text').textContent.trim();
    return studio.h("button.link", { type: "button", onclick: () => field.querySelector("input, textarea").focus() }, name);
  }

  // Only the settings with all the words in their name or help, or only those that are changed.
  function find() {
    const advanced = document.querySelector("#recipe-advanced");
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

  // What stands below the settings, by element: {id: HTML}. It may come before the form does.
  let waiting = 0;
  function annotate(notes, patience = 50) {
    clearTimeout(waiting);
    for (const field of all("#recipe-form .form-field")) {
      const id = `${field.querySelector("[id]").id}-note`;
      let note = document.getElementById(id);
      if (!note) field.append(note = studio.h("div.form-note", { id }));
      const said = notes[id] ?? "";
      if (note.said !== said) note.innerHTML = note.said = said;
    }
    if (patience && Object.keys(notes).some((id) => !document.getElementById(id))) {
      waiting = setTimeout(() => annotate(notes, patience - 1), 100);
    }
  }

  studio.panels.recipe = (server, send, props, watch) => {
    const tell = (message) => { studio.recipe.hold(); send(message); };
    const arrive = () => {
      const news = JSON.parse(props.value || "{}");
      annotate(news.notes ?? {});
      if (news.ask) send({ ask: true });
    };
    watch("value", arrive);
    arrive();
    // The stepper tells of the recipe too; it follows when typing pauses.
    let timer = 0;
    const soon = () => { clearTimeout(timer); timer = setTimeout(() => studio.refreshBadges?.(), 1500); };
    document.addEventListener("input", (event) => {
      if (event.target.closest("#recipe-page .find")) return find();
      if (event.target.closest("#recipe-page")) soon();
    });
    document.addEventListener("click", async (event) => {
      for (const [selector, act] of Object.entries(SMALL)) {
        const found = event.target.closest(`#recipe-page ${selector}`);
        if (found) return act(found);
      }
      const button = event.target.closest("#recipe-page :is([data-set], [data-preset], [data-card], [data-recipe], [data-export])");
      if (!button) return;
      soon();
      if (button.dataset.recipe === "") { button.closest(".brought").remove(); return; }
      if (button.dataset.recipe) return tell(JSON.parse(button.dataset.recipe));
      if (button.dataset.card) return tell({ card: Number(button.dataset.card) });
      if (button.dataset.preset) return tell({ preset: button.dataset.preset });
      if (button.dataset.set) return tell({ set: JSON.parse(button.dataset.set) });
      const ask = button.dataset.export ? server.export_kohya : server.export;
      const answer = await studio.call(ask({ project: studio.project() }));
      for (const [name, text] of Object.entries(answer?.files ?? {})) download(name, text);
      if (answer?.said) studio.toast(answer.said, "info");
    });
  };
})();
