// studio.DrawCard: more pictures with a run's LoRA, of prompts that are typed; drawn by the queue.
(() => {
  "use strict";
  if (studio.DrawCard) return;
  const { h, icon, format } = studio;

  const url = (run, drawing) => `/studio/drawing/${run}/${encodeURIComponent(drawing.file)}`;
  const words = (drawing) => `step ${format.count(drawing.step)} · seed ${drawing.seed}`;

  studio.DrawCard = class {
    /** `server`: draw(message), drawings(message). */
    constructor(server) {
      this.server = server;
      this.run = "";
      this.drawings = [];
      this.prompts = h("textarea", { rows: 3, spellcheck: true, id: "draw-prompts", maxLength: 20000 });
      this.step = h("select", { id: "draw-step" });
      this.seed = h("input", { inputMode: "numeric", autocomplete: "off", id: "draw-seed", placeholder: "a new one", maxLength: 20 });
      this.button = h("button.btn.primary", { type: "submit", id: "draw" }, icon("image"), h("span", null, "Draw"));
      this.status = h("div", { role: "status" });
      this.grid = h("ul.drawings", { "aria-label": "Drawn pictures" });
      this.more = h("p.muted.hint", { hidden: true });
      this.element = h("section.card.draw-card", { "aria-label": "Draw more" },
        h("div.card-head", null, h("h3", null, "Draw more")),
        h("form", { onsubmit: (event) => { event.preventDefault(); this.send(); } },
          h("label.field", null, "Prompts, one a line", this.prompts, h("small", null, "Settings of a line's own: --n what not to show, --w 832, --h 1216, --s 30 steps, --l 7 guidance")),
          h("div.draw-row", null,
            h("label.field", null, "Checkpoint", this.step),
            h("label.field", null, "Seed", this.seed),
            this.button)),
        this.status, this.grid, this.more);
    }

    /** `run`: a run's details; null in its place where there is nothing to draw with. */
    show(run) {
      if (run.id !== this.run) {
        this.prompts.value = run.prompt;
        this.drawings = [];
        this.grid.replaceChildren();
        this.more.hidden = true;
        this.seed.value = "";
      }
      const chosen = run.id === this.run ? this.step.value : "";
      this.run = run.id;
      this.step.replaceChildren(...run.checkpoints.map(({ step, starred }, index) =>
        h("option", { value: index ? String(step) : "" }, `${format.count(step)}${index ? "" : ", newest"}${starred ? " ★" : ""}`)));
      this.step.value = [...this.step.options].some((option) => option.value === chosen) ? chosen : "";
      this.jobs = undefined;
      this.update(studio.live);
    }

    async send() {
      this.button.disabled = true;
      const { run } = this;
      const answer = await studio.call(this.server.draw({ run, prompts: this.prompts.value, seed: this.seed.value, step: this.step.value }));
      this.button.disabled = false;
      if (answer) studio.live.kick(false);
    }

    /** What the queue says of this run's drawings; a change of it means that there may be new pictures. */
    update({ queue, going }) {
      const mine = queue.jobs.filter((job) => job.kind === "sample" && job.run === this.run);
      const now = JSON.stringify(mine.map((job) => [job.id, job.state, going[job.id]?.step, going[job.id]?.stop?.rung, queue.paused]));
      if (now === this.jobs) return;
      this.jobs = now;
      this.status.replaceChildren(...this.notice(mine, queue, going));
      this.load();
    }

    notice(mine, queue, going) {
      const running = mine.find((job) => job.state === "running");
      const waiting = mine.filter((job) => job.state === "waiting");
      const open = h("button.link", { type: "button", onclick: () => studio.go("train") }, "Open the queue");
      if (running) {
        const { step = 0, total = 0, stop } = going[running.id] ?? {};
        const stopped = h("button.btn.small.danger", { type: "button", onclick: () => this.stop(running, stopped) }, "Stop");
        const text = stop ? stop.text : step ? `Drawing: ${step} of ${total} done.` : "Loading the base model…";
        return [h("div.notice.stopping", null, icon("image"), h("span", null, text, waiting.length ? ` ${waiting.length} more in the queue.` : ""), stop ? null : stopped)];
      }
      if (waiting.length) {
        const why = queue.paused ? "It waits: the queue is paused." : "It waits for its turn: what runs now comes first.";
        return [h("p.notice", null, h("span", null, why, " ", open))];
      }
      const [last] = mine;
      if (last?.state !== "failed") return [];
      return [h("p.notice.bad", null, icon("alert"), h("span", null, last.message || "The drawing failed.", " ", open))];
    }

    async stop(job, button) {
      button.disabled = true;
      await studio.call(this.server.stop_drawing({ job: job.id }));
      studio.live.kick(false);
    }

    async load() {
      const { run } = this;
      const answer = await this.server.drawings({ run }).catch(() => null);
      if (!answer || answer.error || run !== this.run) return;
      this.drawings = answer.drawings;
      const there = new Map([...this.grid.children].map((item) => [item.dataset.file, item]));
      this.grid.replaceChildren(...this.drawings.map((drawing) => there.get(drawing.file) ?? this.tile(drawing)));
      this.more.hidden = !answer.more;
      this.more.textContent = `${format.count(answer.more)} older ones are in the run's folder “drawings”.`;
    }

    tile(drawing) {
      const image = h("img", { src: url(this.run, drawing), loading: "lazy", decoding: "async", alt: drawing.text });
      return h("li", { "data-file": drawing.file },
        h("button", { type: "button", title: "Look at it", onclick: () => this.view(drawing) }, image),
        h("b", { title: drawing.text }, drawing.text), h("span.muted.number.facts", null, ...words(drawing).split(" · ").map((part) => h("span", null, part))));
    }

    /** The large view: ← → through the pictures, Esc closes. */
    view(drawing) {
      let at = this.drawings.findIndex((one) => one.file === drawing.file);
      const image = h("img", { alt: "" });
      const caption = h("figcaption");
      const text = h("div.viewer-words", { "aria-live": "polite" });
      const show = (by) => {
        at = Math.min(Math.max(at + by, 0), this.drawings.length - 1);
        const one = this.drawings[at];
        [image.src, image.alt, caption.textContent] = [url(this.run, one), one.text, words(one)];
        text.replaceChildren(h("b", null, one.text));
      };
      const again = h("button.btn.small", { type: "button", onclick: () => { this.again(this.drawings[at]); dialog.close(); } }, "Use prompt and seed");
      const key = (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (by) { event.preventDefault(); show(by); }
      };
      const dialog = h("dialog.viewer", { "aria-label": "Drawing", onclose: () => dialog.remove(), onkeydown: key },
        h("div.viewer-head", null, text, again, h("button.icon-button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"))),
        h("div.viewer-stage", null,
          h("button.icon-button", { type: "button", "aria-label": "Newer", onclick: () => show(-1) }, icon("left")),
          h("div.viewer-pictures", null, h("figure", null, image, caption)),
          h("button.icon-button", { type: "button", "aria-label": "Older", onclick: () => show(1) }, icon("right"))),
        h("p.viewer-keys", null, "← → pictures   Esc closes"));
      dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
      show(0);
      document.body.append(dialog);
      dialog.showModal();
    }

    again({ text, seed }) {
      [this.prompts.value, this.seed.value] = [text, String(seed)];
      this.prompts.focus();
    }
  };
})();
