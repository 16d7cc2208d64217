// The Results page: one run's LoRA, how to use it, its samples and checkpoints, and publishing to the Hub.
(() => {
  "use strict";
  if (studio.panels.results) return;
  const { h, icon, format } = studio;

  function copyButton(text) {
    const label = h("span", null, "Copy");
    return h("button.btn.small", { type: "button", onclick: async () => {
      label.textContent = await studio.copy(text) ? "Copied" : "Select and copy it";
      setTimeout(() => { label.textContent = "Copy"; }, 1500);
    } }, icon("copy"), label);
  }

  const facts = (rows) => h("dl.plan", null, rows.map(([label, value]) => h("div", null, h("dt", null, label), h("dd", null, value))));

  // Parts of the page -----------------------------------------------------------------------------

  function fileCard(run) {
    if (run.bytes === null) {
      const going = !studio.live.TERMINAL.includes(run.state);
      return h("section.card.empty", null,
        h("h3", null, going ? "This run is not finished yet" : "This run ended without a LoRA file"),
        h("p", null, going ? "The file appears here when the last step is done." : "Resume it on the Train page to bring it to its end."),
        h("div.buttons", null, h("button.btn.primary", { type: "button", onclick: () => studio.go("train") }, "Go to Train")));
    }
    return h("section.card.result", { "aria-label": "The LoRA" },
      h("div.result-head", null,
        h("div", null, h("h2", null, run.file), h("p.muted", null, `${format.bytes(run.bytes)} · loads in ${run.snippet ? "diffusers, " : ""}ComfyUI, A1111 and Forge`)),
        h("a.btn.primary", { id: "download", href: `/studio/download/${run.id}/${encodeURIComponent(run.file)}`, download: run.file }, icon("save"), "Download")),
      facts([["Trigger word", run.trigger || "none"], ...run.facts]));
  }

  function useCard(run) {
    const name = run.file.replace(/\.safetensors$/, "");
    const prompt = `${run.trigger ? `${run.trigger}, ` : ""}… <lora:${name}:1>`;
    const part = (title, ...content) => h("div.use", null, h("h4", null, title), content);
    return h("section.card", { "aria-label": "How to use it" }, h("div.card-head", null, h("h3", null, "How to use it")),
      run.trigger ? part("In every prompt", h("p", null, "Say the trigger word: ", h("code", null, run.trigger), " ", copyButton(run.trigger))) : null,
      part("ComfyUI", h("p", null, "Put the file into ", h("code", null, "ComfyUI/models/loras/"), " and add a Load LoRA node, strength 1.")),
      part("A1111, Forge", h("p", null, "Put it into ", h("code", null, "models/Lora/"), " and write ", h("code", null, prompt), ".")),
      run.snippet ? part("Python", h("div.code", null, h("pre", null, run.snippet), copyButton(run.snippet)))
        : part("diffusers", h("p", null, "Does not read this kind of adapter.")));
  }

  /** The states on disk. A starred one stays, however many the recipe keeps; `star(step, on)` answers the new list. */
  function checkpointCard(run, star) {
    const list = h("div");
    const draw = (checkpoints) => list.replaceChildren(checkpoints.length ? h("ul.checkpoints", null, checkpoints.map(({ step, bytes, starred }) => {
      const label = starred ? `Let step ${step} go when its time comes` : `Keep step ${step} for good`;
      const button = h(`button.icon-button.star${starred ? ".on" : ""}`, { type: "button", title: label, "aria-label": label, "aria-pressed": String(starred), onclick: async () => {
        const answer = await star(step, !starred);
        if (!answer) return;
        draw(answer.checkpoints);
        list.querySelector(`[data-step="${step}"]`)?.focus();
      }, "data-step": String(step) }, icon("star"));
      return h("li", null, button, h("b.number", null, `step ${format.count(step)}`), h("span.muted.number", null, format.bytes(bytes)));
    })) : h("p.muted", null, "None on disk."));
    draw(run.checkpoints);
    return h("section.card", { "aria-label": "Checkpoints" }, h("div.card-head", null, h("h3", null, "Checkpoints")), list,
      h("p.muted.hint", null, "Resumable states of the training; the newest is where Resume goes on. A starred one is never deleted."));
  }

  // Did it learn? ---------------------------------------------------------------------------------

  const MEASURES = [
    ["likeness", "Likeness", "of pictures with the trigger to the photos: more is better"],
    ["drift", "Drift", "of pictures without the trigger from the base's: less is better"],
    ["copied", "Copying", "how near a picture comes to one photo: above 0.93 is a copy"],
    ["validation", "Validation loss", "on photos that were held out: less is better"],
  ];

  /** A row of bars, one a step, between 0 (or the least) and the most of the run. */
  function barRow([key, label, meaning], bars, best) {
    const known = bars.filter((row) => row[key] !== null);
    if (!known.length || (key !== "validation" && known.length < 2)) return null;
    const values = known.map((row) => row[key]);
    const low = key === "drift" ? 0 : Math.min(...values) - 0.25 * (Math.max(...values) - Math.min(...values));
    const span = Math.max(...values) - low || 1;
    const columns = known.map((row) => h(`div.measure-bar${row.step === best ? ".best" : ""}`, { title: `step ${format.count(row.step)}: ${row[key].toFixed(3)}` },
      h("span.number", null, row[key].toFixed(key === "drift" ? 3 : 2)),
      h("div", null, h("i", { style: `height:${Math.max(4, 100 * (row[key] - low) / span).toFixed(0)}%` })), h("span.number", null, format.count(row.step))));
    return h("div.measure", null, h("div.measure-head", null, h("b", null, label), h("small.muted", null, meaning)),
      h("div.measure-bars", { role: "img", "aria-label": `${label} by step: ${known.map((row) => `${row.step} ${row[key].toFixed(3)}`).join(", ")}` }, columns));
  }

  function blockList(blocks) {
    if (!blocks.length) return null;
    const most = Math.max(...blocks.map(([, moved]) => moved)) || 1;
    return h("details.blocks", null, h("summary", null, "How far each block was moved"),
      h("ul", null, blocks.map(([name, moved]) => h("li", null, h("code", null, name),
        h("span.bar", null, h("i", { style: `width:${(100 * moved / most).toFixed(1)}%` })), h("span.number", null, `${(100 * moved).toFixed(1)} %`)))));
  }

  function learnedCard({ sentences, bars, best, blocks }) {
    if (!sentences.length) return null;
    const signs = { good: "check", warning: "alert", bad: "alert" };
    const kinds = { good: ".good", warning: ".warn", bad: ".bad" };
    return h("section.card", { "aria-label": "Did it learn?", id: "learned" }, h("div.card-head", null, h("h3", null, "Did it learn?")),
      h("div.verdict", null, sentences.map(([mood, text]) => h(`p.notice${kinds[mood] ?? ""}`, null, signs[mood] ? icon(signs[mood]) : null, h("span", null, text)))),
      h("div.measures", null, MEASURES.map((measure) => barRow(measure, bars, best)).filter(Boolean)),
      blockList(blocks));
  }

  // Publishing ------------------------------------------------------------------------------------

  class Publish {
    constructor(server) {
      this.server = server;
      this.repo = h("input", { name: "repo", autocomplete: "off", spellcheck: false, required: true, maxLength: 200 });
      this.private = h("input", { type: "checkbox", checked: true });
      // Never given back: emptied when it is sent, and the browser is asked not to remember it.
      this.token = h("input", { type: "password", autocomplete: "new-password", placeholder: "hf_…", spellcheck: false });
      this.button = h("button.btn.primary", { type: "submit", id: "publish" }, "Publish");
      this.status = h("div", { role: "status" });
      this.element = h("section.card", { "aria-label": "Publish" },
        h("div.card-head", null, h("h3", null, "Publish to the Hugging Face Hub")),
        h("form", { onsubmit: (event) => { event.preventDefault(); this.send(); } },
          h("label.field", null, "Repository", this.repo, h("small", null, "you/name; a name alone goes to your own account")),
          h("label.field.check", null, this.private, "Private"),
          h("label.field", null, "Access token", this.token, h("small", null, "With write access. Used once, kept nowhere. Leave empty if the studio was started with HF_TOKEN.")),
          this.button),
        this.status);
    }

    show(run) {
      clearTimeout(this.timer);
      if (this.run !== run.id) this.repo.value = run.publish.repo_id || run.repo;
      this.run = run.id;
      this.report(run.publish);
    }

    report(status) {
      const running = status.state === "running";
      this.button.disabled = running;
      this.button.textContent = running ? "Publishing…" : "Publish";
      const kind = { done: "good", failed: "bad", asks: "warn", running: "" }[status.state];
      const link = status.url && /^https?:/.test(status.url) ? [" ", h("a.link", { href: status.url, target: "_blank", rel: "noopener noreferrer" }, "Open it")] : [];
      this.status.replaceChildren(...(kind === undefined ? [] : [
        h(`p.notice.${kind || "plain"}`, null, kind ? icon(kind === "good" ? "check" : "alert") : null, h("span", null, status.message, link))]));
      if (running) this.timer = setTimeout(() => this.poll(), 1500);
    }

    async poll() {
      const run = this.run;
      const status = await this.server.publish_status({ run }).catch(() => null);
      if (run !== this.run) return;
      if (status && !status.error) this.report(status);
      else this.timer = setTimeout(() => this.poll(), 4000);
    }

    async send() {
      const message = { run: this.run, repo_id: this.repo.value, private: this.private.checked, token: this.token.value };
      this.token.value = "";
      const status = await studio.call(this.server.publish(message));
      if (status) this.report(status);
    }
  }

  // The page --------------------------------------------------------------------------------------

  /** The samples of a run that the tab does not follow, fetched once. */
  async function pastRun(run) {
    const query = new URLSearchParams({ project: studio.project(), run, offset: 0, log: 0 });
    const answer = await studio.fetchJSON(`/studio/live?${query}`).catch(() => ({ events: [] }));
    const data = studio.live.fresh(run);
    for (const event of answer.events) studio.live.fold(data, event);
    return data;
  }

  studio.panels.results = (element, server) => {
    const matrix = new studio.SampleMatrix({ empty: "This run drew no samples: its recipe has no prompts." });
    const publish = new Publish(server);
    const draw = new studio.DrawCard(server);
    const picker = h("select", { "aria-label": "Run" });
    const pickerRow = h("label.field.run-picker", { hidden: true }, "Run", picker);
    const body = h("div.results");
    let chosen = "";
    let ticket = 0;
    element.replaceChildren(h("div.results", null, pickerRow, body));

    const label = (run) => {
      const progress = run.state === "finished" ? `${format.count(run.total)} steps` : `step ${format.count(run.step)} of ${format.count(run.total)}`;
      return `${run.when} · ${studio.stateWords[run.state].toLowerCase()} · ${progress}`;
    };

    async function load() {
      const project = studio.project();
      if (!project) return;
      const mine = ticket += 1;
      const answer = await studio.call(server.runs({ project }));
      if (mine !== ticket || !answer) return;
      const { runs } = answer;
      pickerRow.hidden = !runs.length;
      if (!runs.length) return void body.replaceChildren(h("section.card.empty", null,
        h("h3", null, "No results yet"),
        h("p", null, "When a training is finished, its LoRA waits here for download, with the pictures it drew on the way."),
        h("div.buttons", null, h("button.btn.primary", { type: "button", onclick: () => studio.go("train") }, "Go to Train"))));
      if (!runs.some((run) => run.id === chosen)) chosen = (runs.find((run) => run.state === "finished") ?? runs[0]).id;
      picker.replaceChildren(...runs.map((run) => h("option", { value: run.id }, label(run))));
      picker.value = chosen;
      const detail = await studio.call(server.detail({ run: chosen }));
      if (mine !== ticket || !detail) return;
      const done = detail.bytes !== null;
      publish.show(detail);
      const drawable = detail.checkpoints.length > 0;
      if (drawable) draw.show(detail);
      body.replaceChildren(...[fileCard(detail), learnedCard(detail.learned), matrix.element, drawable ? draw.element : null, done ? useCard(detail) : null,
        h("div.results-columns", null, done ? publish.element : null, checkpointCard(detail, (step, on) => studio.call(server.star({ run: detail.id, step, on }))))].filter(Boolean));
      const { data } = studio.live;
      const shown = chosen === data.run ? data : await pastRun(chosen);
      if (mine === ticket) matrix.update(shown);
    }
    picker.onchange = () => { chosen = picker.value; load(); };
    const reload = () => { if (studio.step() === "results") load(); };
    studio.on("project", () => { chosen = ""; reload(); });
    studio.on("step", reload);
    studio.on("state", reload);
    studio.on("live", (live) => {
      if (studio.step() !== "results") return;
      if (chosen === live.data.run && matrix.element.isConnected) matrix.update(live.data);
      if (chosen === draw.run && draw.element.isConnected) draw.update(live);
    });
    reload();
  };
})();
