// studio.SampleMatrix: validation images, rows = prompts, columns = steps (step 0, the baseline, first),
// and the large view that opens on a click.
(() => {
  "use strict";
  if (studio.SampleMatrix) return;
  const { h, icon, format } = studio;

  class SampleMatrix {
    constructor({ title = "Samples", empty = "" } = {}) {
      this.empty = empty;
      this.data = null;
      this.cells = new Map();
      this.count = h("span.muted");
      this.body = h("div.matrix-scroll", { tabIndex: 0, role: "region", "aria-label": "Samples by prompt and step" });
      this.element = h("section.card.samples", { "aria-label": title }, h("div.card-head", null, h("h3", null, title), this.count), this.body);
    }

    /** `data`: run, samples (Map), prompts (Map), as studio.live folds them. */
    update(data) {
      const shape = `${data.run}/${data.controls.size}/${[...data.samples.values()].map((sample) => sample.url).join()}`;
      this.data = data;
      if (shape === this.shape) return;
      this.shape = shape;
      this.steps = [...new Set([...data.samples.values()].map((sample) => sample.step))].sort((a, b) => a - b);
      this.rows = [...data.prompts.keys()].sort((a, b) => a - b);
      const atEnd = this.body.scrollLeft + this.body.clientWidth >= this.body.scrollWidth - 40;
      this.render();
      if (atEnd) this.body.scrollLeft = this.body.scrollWidth; // the newest stays in sight
    }

    render() {
      const { steps, rows, data } = this;
      if (!steps.length) {
        this.count.textContent = "";
        this.cells.clear();
        return this.body.replaceChildren(h("p.muted.hint", null, this.empty));
      }
      const still = new Set();
      const table = h("table.matrix", null,
        h("thead", null, h("tr", null, h("th", { scope: "col" }, h("span.visually-hidden", null, "Prompt")),
          steps.map((step) => h("th.number", { scope: "col" }, step === 0 ? "before" : format.count(step))))),
        h("tbody", null, rows.map((prompt) => h("tr", null,
          h("th", { scope: "row", title: data.prompts.get(prompt) }, h("span", null, data.prompts.get(prompt)), this.control(prompt)),
          steps.map((step) => h("td", null, this.cell(step, prompt, still)))))));
      for (const key of this.cells.keys()) if (!still.has(key)) this.cells.delete(key);
      this.count.textContent = `${rows.length} prompt${rows.length === 1 ? "" : "s"} × ${steps.length} step${steps.length === 1 ? "" : "s"}`;
      return this.body.replaceChildren(table);
    }

    /** Prompts without the trigger word are marked, where others have it. */
    control(prompt) {
      const { controls, prompts } = this.data;
      return controls.has(prompt) && controls.size < prompts.size ? h("small.muted", { title: "Without the trigger word: it should stay as the base draws it" }, "control") : null;
    }

    /** A picture is made once and moved, not loaded again, when the table grows. */
    cell(step, prompt, still) {
      const sample = this.data.samples.get(`${step}/${prompt}`);
      if (!sample) return h("div.waiting", { "aria-label": "not drawn yet" });
      still.add(sample.url);
      let button = this.cells.get(sample.url);
      if (!button) {
        const image = h("img", { src: sample.url, loading: "lazy", decoding: "async", alt: `Step ${step}: ${this.data.prompts.get(prompt)}` });
        button = h("button", { type: "button", onclick: () => new Viewer(this, step, prompt) }, image);
        this.cells.set(sample.url, button);
      }
      return button;
    }
  }

  /** The large view: ← → through the steps, ↑ ↓ through the prompts, Esc closes. */
  class Viewer {
    constructor(matrix, step, prompt) {
      this.matrix = matrix;
      [this.column, this.row] = [matrix.steps.indexOf(step), matrix.rows.indexOf(prompt)];
      this.image = h("img", { alt: "" });
      this.base = h("img", { alt: "" });
      this.words = h("div.viewer-words", { "aria-live": "polite" });
      this.baseFigure = h("figure", null, this.base, h("figcaption", null, "before training"));
      this.caption = h("figcaption");
      const compare = h("input", { type: "checkbox", checked: Viewer.compare, onchange: () => { Viewer.compare = compare.checked; this.show(); } });
      const move = (columns, rows) => () => this.move(columns, rows);
      this.dialog = h("dialog.viewer", { "aria-label": "Sample", onclose: () => this.dialog.remove(), onkeydown: (event) => this.key(event) },
        h("div.viewer-head", null, this.words, h("label.chart-check", null, compare, "beside step 0"),
          h("button.icon-button", { type: "button", "aria-label": "Close", onclick: () => this.dialog.close() }, icon("close"))),
        h("div.viewer-stage", null,
          h("button.icon-button", { type: "button", "aria-label": "Earlier step", onclick: move(-1, 0) }, icon("left")),
          h("div.viewer-pictures", null, this.baseFigure, h("figure", null, this.image, this.caption)),
          h("button.icon-button", { type: "button", "aria-label": "Later step", onclick: move(1, 0) }, icon("right"))),
        h("p.viewer-keys", null, "← → steps   ↑ ↓ prompts   Esc closes"));
      this.dialog.onclick = (event) => { if (event.target === this.dialog) this.dialog.close(); };
      document.body.append(this.dialog);
      this.show();
      this.dialog.showModal();
    }

    key(event) {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      this.move(...move);
    }

    move(columns, rows) {
      const { steps, rows: prompts } = this.matrix;
      this.column = Math.min(Math.max(this.column + columns, 0), steps.length - 1);
      this.row = Math.min(Math.max(this.row + rows, 0), prompts.length - 1);
      this.show();
    }

    show() {
      const { steps, rows, data } = this.matrix;
      const [step, prompt] = [steps[this.column], rows[this.row]];
      const [sample, base] = [data.samples.get(`${step}/${prompt}`), data.samples.get(`0/${prompt}`)];
      const text = data.prompts.get(prompt);
      this.image.src = sample?.url ?? "";
      this.image.alt = sample ? `Step ${step}: ${text}` : "not drawn yet";
      this.caption.textContent = step === 0 ? "before training" : `step ${format.count(step)}`;
      this.words.replaceChildren(h("b", null, text));
      this.baseFigure.hidden = !Viewer.compare || !base || step === 0;
      if (base) [this.base.src, this.base.alt] = [base.url, `Before training: ${text}`];
    }
  }
  Viewer.compare = true;

  studio.SampleMatrix = SampleMatrix;
})();
