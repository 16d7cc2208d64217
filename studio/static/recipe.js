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

  studio.panels.recipe = (element, server, tell) => {
    // The stepper tells of the recipe too; it follows when typing pauses.
    let timer = 0;
    const soon = () => { clearTimeout(timer); timer = setTimeout(() => studio.refreshBadges?.(), 1500); };
    document.addEventListener("input", (event) => { if (event.target.closest("#recipe-page")) soon(); });
    document.addEventListener("click", async (event) => {
      const button = event.target.closest("#recipe-page :is([data-set], [data-preset], [data-export])");
      if (!button) return;
      soon();
      if (button.dataset.preset) return tell({ preset: button.dataset.preset });
      if (button.dataset.set) return tell({ set: JSON.parse(button.dataset.set) });
      const answer = await studio.call(server.export({ project: studio.project() }));
      if (answer) download("recipe.toml", answer.text);
    });
  };
})();
