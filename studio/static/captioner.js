// Captions by a model: the form on the Captions page, and how its job of the queue gets on.
(() => {
  "use strict";
  if (studio.CaptionWriter) return;
  const { h, icon } = studio;
  const OTHER = "other";
  const EXISTING = { keep: "It stays as it is", replace: "It is replaced", append: "The new text is added" };
  const STYLES = { sentence: "Sentences", tags: "Tags" };
  const many = (count) => `${count} photo${count === 1 ? "" : "s"}`;

  studio.CaptionWriter = class {
    /** `flush()` saves what is typed, `changed()` loads the captions, `empty()` and `photos()` count. */
    constructor({ server, flush, changed, empty, photos }) {
      Object.assign(this, { server, flush, changed, empty, photos, style: "sentence", offer: null, watched: "", seen: "", busy: false });
      const field = (label, input, hint = "") => h("label", null, label, input, hint && h("small.muted", null, hint));
      const text = (name, hint = "") => h("input", { type: "text", name, placeholder: hint, autocomplete: "off", maxLength: 1000 });
      this.styles = h("div.chips", { role: "group", "aria-label": "Kind of caption" });
      this.model = h("select", { onchange: () => this.show() });
      this.other = text("model", "owner/name on the Hub, or a folder");
      this.otherField = field("Which one", this.other);
      this.about = h("p.say");
      this.existing = h("select", { onchange: () => this.count() }, Object.entries(EXISTING).map(([value, label]) => h("option", { value }, label)));
      this.prompt = text("prompt");
      this.most = text("max_tokens");
      this.threshold = text("threshold");
      this.without = text("without", "for example: solo, simple background");
      this.prefix = text("prefix", "for example: a photo of");
      this.trigger = h("input", { type: "checkbox", checked: true });
      this.forSentences = [field("What the model is asked", this.prompt, "Empty: for a description of one or two sentences. BLIP goes on from these words instead."), field("At most so many tokens", this.most, "SDXL reads 75, FLUX 512.")];
      this.forTags = [field("Certainty", this.threshold, "Of 0 to 1; lower gives more tags."), field("Never these tags", this.without)];
      this.inputs = h("div.inputs");
      this.start = h("button.btn.primary", { type: "button", id: "captions-write", onclick: () => this.begin() });
      this.problem = h("div", { "aria-live": "polite" });
      this.status = h("div", { "aria-live": "polite" });
      this.element = h("details.card", { id: "captions-by-model", ontoggle: () => this.load() }, h("summary", null, "Let a model write them", this.lacking = h("small.muted")),
        h("div.bulk", null, this.styles,
          h("div.inputs", null, field("Model", this.model), this.otherField, field("Where there is one already", this.existing)), this.about,
          h("details.more", null, h("summary", null, "More"), h("div.bulk", null, this.inputs, h("div.options", null, h("label", null, this.trigger, "Put the trigger word in front")))),
          this.problem, h("div.buttons", null, this.start)), this.status);
      studio.on("live", (live) => this.follow(live));
      studio.on("project", () => { this.watched = this.seen = ""; this.problem.replaceChildren(); this.status.replaceChildren(); });
    }

    async load() {
      if (this.offer || !this.element.open) return;
      const answer = await studio.call(this.server.captioners({}));
      if (!answer) return;
      this.offer = answer;
      [this.prompt.placeholder, this.most.placeholder, this.threshold.placeholder] = [answer.prompt, String(answer.max_tokens), String(answer.threshold)];
      this.pick("sentence");
    }

    pick(style) {
      this.style = style;
      this.styles.replaceChildren(...Object.entries(STYLES).map(([name, label]) => h("button.chip", { type: "button", "aria-pressed": String(name === style), onclick: () => this.pick(name) }, label)));
      const rows = this.offer.models.filter((row) => row.style === style);
      this.model.replaceChildren(...rows.map((row) => h("option", { value: row.key }, `${row.label}, ${row.gib} GB`)), h("option", { value: OTHER }, "Another one…"));
      this.model.value = this.offer.default[style];
      this.inputs.replaceChildren(...(style === "tags" ? this.forTags : this.forSentences), this.prefixField ??= h("label", null, "Text to put before", this.prefix));
      this.show();
    }

    show() {
      const row = this.offer.models.find(({ key }) => key === this.model.value);
      this.otherField.hidden = Boolean(row);
      const lacks = this.style === "tags" && this.offer.lacks;
      this.about.className = lacks ? "say warning" : "say";
      this.about.replaceChildren(...(lacks ? [`${lacks}.`] : row ? [`${row.licence}; ${row.about}. Fetched from the Hub when it is first used. `, h("a", { href: row.page, target: "_blank", rel: "noreferrer" }, "Its page")]
        : [this.style === "tags" ? "A WD tagger of version 3: model.onnx with selected_tags.csv." : "Any model that transformers knows for describing pictures, with .safetensors weights."]));
      this.problem.replaceChildren();
      this.count();
    }

    /** What the button would do. */
    count() {
      const keep = this.existing.value === "keep";
      const wanted = keep ? this.empty() : this.photos();
      this.lacking.textContent = this.empty() ? ` · ${many(this.empty())} without a caption` : "";
      this.start.textContent = keep && !wanted ? "Every photo has a caption" : `Caption ${many(wanted)}`;
      this.start.disabled = this.busy || !wanted || !this.offer || Boolean(this.style === "tags" && this.offer.lacks);
    }

    async begin() {
      const form = { model: this.model.value === OTHER ? this.other.value : this.model.value, style: this.style, existing: this.existing.value, trigger: this.trigger.checked, prefix: this.prefix.value };
      for (const name of this.style === "tags" ? ["threshold", "without"] : ["prompt"]) form[name] = this[name].value;
      if (this.style === "sentence") form.max_tokens = this.most.value;
      this.start.disabled = true;
      await this.flush();
      const answer = await this.server.caption_them({ project: studio.project(), ...form }).catch(() => ({ error: "The studio did not answer; try again in a moment." }));
      this.count();
      this.problem.replaceChildren(...(answer.error ? [h("p.say.error", { role: "alert" }, answer.error)] : []));
      if (!answer.error) this.watched = answer.job;
      studio.live.kick(false);
    }

    /** What the queue says of this project's captions. Each that is written is shown at once. */
    follow({ queue, going }) {
      const mine = queue.jobs.filter((job) => job.kind === "caption" && job.project === studio.project());
      const job = mine.find(({ state }) => ["running", "waiting"].includes(state)) ?? mine.find(({ id }) => id === this.watched);
      const now = JSON.stringify(job ? [job.id, job.state, going[job.id], queue.paused] : []);
      if (now === this.seen) return;
      this.seen = now;
      if (job) this.watched = job.id;
      this.busy = ["running", "waiting"].includes(job?.state);
      this.count();
      const step = going[job?.id]?.step ?? 0;
      const news = job && `${job.state} ${step}`;
      if (job && news !== this.news && studio.step() === "captions") this.changed();
      this.news = news;
      this.status.replaceChildren(...(job ? this.notice(job, going[job.id] ?? {}, queue.paused) : []));
    }

    notice(job, { step, total, said, stop }, paused) {
      const open = h("button.link", { type: "button", onclick: () => studio.go("train") }, "Open the queue");
      const end = h("button.btn.small.danger", { type: "button", onclick: async (event) => {
        event.target.disabled = true;
        await studio.call(this.server.stop_captions({ job: job.id }));
        studio.live.kick(false);
      } }, "Stop");
      switch (job.state) {
        case "running": {
          const text = stop?.text ?? (total ? `Writing captions: ${step} of ${total}.` : said || "Starting…");
          return [h("div.notice.stopping", null, icon("pen"), h("span", null, `${job.detail}. `, text), stop ? null : end)];
        }
        case "waiting":
          return [h("p.notice", null, h("span", null, paused ? "It waits: the queue is paused. " : "It waits for its turn: what runs now comes first. ", open))];
        case "failed":
          return [h("p.notice.bad", null, icon("alert"), h("span", null, `${job.message.replace(/\.$/, "") || "It failed"}. `, open))];
        case "finished":
          return [h("p.say", { role: "status" }, `${job.detail}: ${job.message}. Undo, under “Change many captions at once”, takes it back.`)];
        default:
          return [h("p.say", { role: "status" }, "Stopped; what was written is kept. ", open)];
      }
    }
  };
})();
