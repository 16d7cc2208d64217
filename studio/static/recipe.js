// The Recipe page: buttons inside our HTML (presets, fixes, back to the preset) and the export.
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

  studio.panels.recipe = (element, server, send) => {
    const tell = (message) => { studio.recipe.hold(); send(message); };
    // The stepper tells of the recipe too; it follows when typing pauses.
    let timer = 0;
    const soon = () => { clearTimeout(timer); timer = setTimeout(() => studio.refreshBadges?.(), 1500); };
    document.addEventListener("input", (event) => { if (event.target.closest("#recipe-page")) soon(); });
    document.addEventListener("click", async (event) => {
      const button = event.target.closest("#recipe-page :is([data-set], [data-preset], [data-recipe], [data-export])");
      if (!button) return;
      soon();
      if (button.dataset.recipe === "") { button.closest(".brought").remove(); return; }
      if (button.dataset.recipe) return tell(JSON.parse(button.dataset.recipe));
      if (button.dataset.preset) return tell({ preset: button.dataset.preset });
      if (button.dataset.set) return tell({ set: JSON.parse(button.dataset.set) });
      const answer = await studio.call(server.export({ project: studio.project() }));
      if (answer) download("recipe.toml", answer.text);
    });
  };
})();
