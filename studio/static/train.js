// The Train page: buttons, stage ladder, numbers, loss chart, samples and log of the run that the tab follows.
(() => {
  "use strict";
  if (studio.panels.train) return;
  const { h, icon, format } = studio;

  // Buttons ---------------------------------------------------------------------------------------

  const BUTTONS = [
    ["start", "play", "Start training", "primary"],
    ["resume", "play", "Resume", "primary"],
    ["stop", "stop", "Stop", "danger"],
    ["save", "save", "Save now", ""],
    ["sample", "image", "Sample now", ""],
  ];
  const WAITING = { start: "Starting…", resume: "Resuming…", stop: "Stopping…", save: "Saving…", sample: "Asked…" };

  class Actions {
    constructor(server) {
      this.server = server;
      this.pending = null; // {verb, until}: a button waits until the run shows the effect
      this.plan = null;
      this.why = h("p.why.muted", { role: "status" });
      this.row = h("div.buttons");
      this.buttons = {};
      this.results = h("button.btn.primary", { type: "button", id: "train-results", onclick: () => studio.go("results") }, icon("check"), "See the LoRA");
      this.row.append(this.results);
      for (const [verb, sign, label, kind] of BUTTONS) {
        const button = h(`button.btn${kind ? `.${kind}` : ""}`, { type: "button", id: `train-${verb}`, onclick: () => this.press(verb) }, icon(sign), h("span", null, label));
        this.buttons[verb] = { button, label: button.lastChild, text: label };
        this.row.append(button);
      }
    }

    /** What stands against each button, "" where it may be pressed, null where it is not offered. */
    reasons() {
      const live = studio.live;
      const state = live.state();
      const alive = live.alive();
      const queued = state === "queued";
      const ending = live.active && live.active.run === live.data.run && !alive ? "The trainer is just ending; this takes a moment." : "";
      const working = ["training", "sampling", "saving"].includes(state);
      const stopping = state === "stopping";
      const resumable = ["stopped", "failed", "lost"].includes(state);
      const soon = "This works as soon as the first step is done.";
      return {
        start: alive || queued ? null : this.plan ? this.plan.problem : "Looking at the project…",
        resume: resumable ? ending : null,
        stop: stopping ? "It is stopping." : alive || queued ? "" : null,
        save: alive && !stopping ? (working ? "" : soon) : null,
        sample: alive && !stopping ? (!this.plan || this.plan.run_prompts ? (working ? "" : soon) : "The recipe has no sample prompts; add some for the next run.") : null,
      };
    }

    show() {
      const reasons = this.reasons();
      const { pending } = this;
      if (pending && (Date.now() > pending.until || this.effect(pending))) this.pending = null;
      const said = new Set();
      for (const [verb, { button, label, text }] of Object.entries(this.buttons)) {
        const reason = reasons[verb];
        const waits = this.pending?.verb === verb;
        button.hidden = reason === null && !waits;
        const off = Boolean(reason) || this.pending !== null;
        if (button.getAttribute("aria-disabled") !== String(off)) button.setAttribute("aria-disabled", String(off));
        button.title = reason || "";
        const wanted = waits ? WAITING[verb] : this.label(verb) ?? text;
        if (label.textContent !== wanted) label.textContent = wanted;
        if (reason && !button.hidden) said.add(reason);
      }
      // With a run to resume or a LoRA to see at hand, another training is the lesser choice.
      this.results.hidden = studio.live.state() !== "finished" || this.pending !== null;
      this.buttons.start.button.classList.toggle("primary", reasons.resume === null && studio.live.state() !== "finished");
      const sentence = this.pending ? "" : [...said].join(" ");
      if (this.why.textContent !== sentence) this.why.textContent = sentence;
    }

    /** What a button is called just now, where that is not its usual name. */
    label(verb) {
      const { live } = studio;
      if (verb === "start" && live.data.run) return "Train again";
      if (verb === "stop" && live.state() === "queued") return "Take out of the queue";
      return undefined;
    }

    /** Whether the run shows what a button asked for. */
    effect({ verb, run, attempt, checkpoint, samples }) {
      const { data } = studio.live;
      if (verb === "start") return data.run !== run && data.status;
      if (verb === "resume") return studio.live.alive() || studio.live.state() === "queued" || data.attempt > attempt;
      if (verb === "stop") return !studio.live.alive() && studio.live.state() !== "queued";
      if (verb === "save") return data.checkpoints.at(-1)?.step !== checkpoint;
      return data.samples.size > samples;
    }

    async press(verb, more = {}) {
      if (this.buttons[verb].button.getAttribute("aria-disabled") === "true") return;
      const { data } = studio.live;
      const patience = verb === "stop" ? 120 : verb === "sample" ? 60 : 15;
      this.pending = {
        verb, run: data.run, attempt: data.attempt, checkpoint: data.checkpoints.at(-1)?.step, samples: data.samples.size,
        until: Date.now() + 1000 * patience,
      };
      this.show();
      const answer = await studio.call(this.server.act({ verb, project: studio.project(), run: data.run ?? "", ...more }));
      if (!answer) this.pending = null;
      else studio.live.kick(verb === "start");
      this.show();
    }

    async look() {
      const project = studio.project();
      if (!project) return;
      const plan = await this.server.plan({ project }).catch(() => null);
      if (project === studio.project()) this.plan = plan;
      this.show();
      studio.emit("plan", this.plan);
    }
  }

  // Stage ladder ----------------------------------------------------------------------------------

  const RUNGS = [
    ["base", "Base model"], ["encode", "Photos encoded"], ["captions", "Captions encoded"],
    ["load", "Model ready"], ["train", "Training"], ["result", "LoRA file"],
  ];

  /** Index of the rung that the run is at, or where it ended. */
  function rungOf(data) {
    const { state, stage, step, total } = data.status;
    if (state === "finished") return RUNGS.length;
    if (["starting", "downloading"].includes(state)) return 0;
    if (state === "preparing") return { captions: 2, load: 3 }[stage] ?? 1;
    if (state === "saving" && total && step >= total) return 5;
    if (step > 0 || ["training", "sampling", "saving"].includes(state)) return 4;
    return { encode: 1, captions: 2, load: 3 }[[...data.stages.keys()].at(-1)] ?? 0;
  }

  function rungDetail(key, data, at) {
    const { status, stages } = data;
    const stage = stages.get(key);
    if (key === "train") {
      if (!status.total || at < 4) return ["", null];
      const doing = { sampling: "drawing samples", saving: "saving" }[status.state];
      const sample = stages.get("sample");
      const extra = doing ? ` · ${doing}${status.state === "sampling" && sample?.total ? ` ${sample.done}/${sample.total}` : ""}` : "";
      return [`${format.count(status.step)} / ${format.count(status.total)}${extra}`, status.step / status.total];
    }
    if (key === "result") return [data.result ?? "", null];
    if (key === "base" && at === 0) return [status.message || "starting the trainer", null];
    if (stage?.total) return [`${stage.done} / ${stage.total}`, stage.done / stage.total];
    return ["", null];
  }

  class Ladder {
    constructor() {
      this.list = h("ol.ladder");
      this.silent = h("p.notice.warn", { hidden: true }, icon("alert"), h("span"));
      this.element = h("section.card", { "aria-label": "Stages" }, h("div.card-head", null, h("h3", null, "Stages")), this.list, this.silent);
    }

    update(data) {
      const at = rungOf(data);
      const { state } = data.status;
      const ended = { stopped: "warn", failed: "bad", lost: "bad" }[state];
      this.list.replaceChildren(...RUNGS.map(([key, label], index) => {
        const kind = index < at ? "done" : index > at ? "" : ended ?? "now";
        const sign = { done: icon("check"), bad: icon("bang"), warn: icon("stop") }[kind] ?? (kind === "now" ? h("span.dot") : "");
        const [detail, share] = index <= at ? rungDetail(key, data, at) : ["", null];
        const bar = kind === "now" ? h(`div.bar${share === null ? ".unknown" : ""}`, null, h("i", { style: `width:${(100 * (share ?? 0)).toFixed(1)}%` })) : null;
        return h(`li.${kind || "later"}`, null, h("span.mark", null, sign), h("div", null, h("b", null, label), h("span.muted.number", null, detail), bar));
      }));
      const silence = data.status.heartbeat ? Date.now() / 1000 - data.status.heartbeat : 0;
      this.silent.hidden = !studio.live.alive() || state === "starting" || silence < 40;
      this.silent.lastChild.textContent = `No news for ${format.seconds(silence)}; the trainer is alive. Large models may take minutes to load or to draw.`;
    }
  }

  // Numbers ---------------------------------------------------------------------------------------

  const money = (amount, currency) => currency + amount.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: amount < 0.1 ? 4 : 2 });

  /** What the run has cost, what is to come, and 1,000 steps; nothing for a machine without a price. */
  function cost(status, alive) {
    if (status.cost === null || status.cost === undefined) return [];
    const { cost_to_go: toGo, cost_per_1000: per1000, currency } = status;
    const more = [alive && toGo !== null ? `${money(toGo, currency)} to go` : "", per1000 !== null ? `${money(per1000, currency)} per 1,000 steps` : ""];
    return [["Cost", money(status.cost, currency), more.filter(Boolean).join(" · ")]];
  }

  function numbers(data) {
    const { status } = data;
    const alive = studio.live.alive();
    // A resumed run says 0 until it has loaded its checkpoint; what is on the chart is the better word.
    const step = status.step || (alive ? data.series.step.at(-1) ?? 0 : 0);
    const speed = status.steps_per_s;
    const memory = status.vram !== null
      ? ["GPU memory", `${format.gib(status.vram)}`, status.vram_total ? `of ${format.gib(status.vram_total)} GiB, peak` : "GiB, peak"]
      : ["Memory", status.ram === null ? "–" : format.gib(status.ram), "GiB"];
    return [
      ["Step", format.count(step), `of ${format.count(status.total)}`],
      ["Time left", alive ? format.seconds(status.eta_s) : "–", ""],
      ["Speed", !speed ? "–" : speed >= 1 ? speed.toFixed(1) : (1 / speed).toFixed(1), !speed ? "" : speed >= 1 ? "steps/s" : "s per step"],
      ["Loss", format.number(status.loss), ""],
      ["Learning rate", format.number(status.lr, 2), ""],
      memory,
      ...cost(status, alive),
      ["Attempt", String(status.attempt || 1), data.resumes.at(-1) > 0 ? `resumed at step ${format.count(data.resumes.at(-1))}` : ""],
    ].map(([label, value, unit]) => h("div.figure", null, h("dt", null, label), h("dd.number", null, h("b", null, value), unit ? h("span", null, ` ${unit}`) : null)));
  }

  // Log -------------------------------------------------------------------------------------------

  const ERROR_LINE = /error\b|exception|traceback|\bwarning\b/i;

  class Log {
    constructor() {
      this.pinned = h("div.pinned");
      this.lines = h("div.log-lines");
      this.tail = h("div.log-tail");
      this.pane = h("div.log-pane", { tabIndex: 0, role: "log", "aria-live": "off", "aria-label": "Log of the trainer" }, this.lines, this.tail);
      this.element = h("details.card.log", { open: localStorage.getItem("studio-log") === "open" },
        h("summary", null, h("h3", null, "Log"), h("span.muted", null, "what the trainer prints")), this.pinned, this.pane);
      this.element.ontoggle = () => {
        localStorage.setItem("studio-log", this.element.open ? "open" : "");
        this.pane.scrollTop = this.pane.scrollHeight;
      };
      this.shown = 0;
    }

    update(data) {
      if (data.run !== this.run || data.logCount < this.shown) [this.run, this.shown] = [data.run, (this.lines.replaceChildren(), 0)];
      const atBottom = this.pane.scrollTop + this.pane.clientHeight >= this.pane.scrollHeight - 24;
      const fresh = data.log.slice(-(data.logCount - this.shown) || data.log.length);
      if (data.logCount > this.shown) {
        this.lines.append(...fresh.map((line) => h(ERROR_LINE.test(line) ? "div.loud" : "div", null, line || " ")));
        while (this.lines.childElementCount > 4000) this.lines.firstChild.remove();
        this.shown = data.logCount;
      }
      const tail = data.logTail.replace(/\r+$/, "").split("\r").pop();
      if (this.tail.textContent !== tail) this.tail.textContent = tail;
      if (atBottom) this.pane.scrollTop = this.pane.scrollHeight;
      const pins = [...new Set([...data.adapted, ...data.warnings])].slice(-5);
      if (this.pins !== pins.join("\n")) {
        this.pins = pins.join("\n");
        this.pinned.replaceChildren(...pins.map((text) => h("p.notice.warn", null, icon("alert"), h("span", null, text))));
      }
    }
  }

  // Failure and emptiness -------------------------------------------------------------------------

  const sentence = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

  /** The change that a button would make: what, before, after. */
  const changes = (rows) => h("table.changes", null, h("tbody", null, rows.map(([what, before, after]) =>
    h("tr", null, h("th", { scope: "row" }, what), h("td.number", null, after ? h("del", null, before) : before), after ? h("td.number", null, "→ ", h("ins", null, after)) : null))));

  /** Why it failed, what helps, and the button that does it, which is asked for apart. */
  class Failure {
    constructor(server, actions) {
      [this.server, this.actions, this.shown] = [server, actions, ""];
      this.element = h("div");
    }

    update(data) {
      const failed = Boolean(data.run) && studio.live.wantsHelp();
      const spent = Boolean(data.run) && atBudget(data.status);
      const shown = failed || spent ? `${data.run}/${data.status.attempt}/${data.status.message}/${data.checkpoints.length}` : "";
      if (shown === this.shown) return;
      this.shown = shown;
      this.element.replaceChildren(...(failed ? [this.card(data)] : spent ? [budgetCard(data, this.actions)] : []));
      if (failed) this.look(data.run, shown);
    }

    card({ status, checkpoints }) {
      const last = checkpoints.at(-1)?.step;
      this.actions.buttons.resume.button.classList.add("primary");
      this.help = h("div.fix", null, h("p", null, h("b", null, "What helps: "), status.remedy), h("p.muted", null, last ? `Saved up to step ${format.count(last)}.` : "Nothing was saved yet."));
      this.again = h("button.btn", { type: "button", id: "failure-resume", onclick: () => this.actions.press("resume") }, icon("play"), last ? `Resume from step ${format.count(last)}` : "Try again");
      this.buttons = h("div.buttons", null, this.again, h("button.btn", { type: "button", onclick: () => studio.go("recipe") }, "Change the recipe"));
      return h("section.card.failure", { role: "alert" },
        h("div.card-head", null, icon("alert"), h("h3", null, sentence(status.message || "The training failed."))),
        status.evidence ? h("pre.evidence", null, status.evidence) : null, this.help, this.buttons);
    }

    async look(run, shown) {
      const answer = await this.server.fix({ run }).catch(() => null);
      if (shown !== this.shown || !answer?.fix) return;
      const { fix } = answer;
      this.help.replaceChildren(h("p", null, h("b", null, "What helps: "), fix.text, fix.link ? [" ", h("a.link", { href: fix.link, target: "_blank", rel: "noopener noreferrer" }, "Open the model's page")] : null),
        fix.rows.length ? changes(fix.rows) : "");
      const press = h("button.btn.primary", { type: "button", id: "failure-fix", onclick: () => this.press(run, fix.key, press) }, icon("play"), fix.button);
      this.again.hidden = !fix.rows.length; // else it would say the same twice
      this.again.lastChild.textContent = "Resume as it is";
      this.actions.buttons.resume.button.classList.remove("primary"); // this one is the better choice
      this.buttons.prepend(press);
    }

    async press(run, key, button) {
      button.disabled = true;
      const answer = await studio.call(this.server.act({ verb: "fix", run, key }));
      button.disabled = false;
      if (answer) studio.live.kick(answer.run !== run);
      else this.shown = ""; // look again at what it says now
    }
  }

  const atBudget = ({ state, cost, budget }) => state === "stopped" && budget && cost >= budget;

  /** A run that stopped at its budget goes on with more. */
  function budgetCard({ status: { cost, budget, currency } }, actions) {
    const input = h("input", { type: "text", inputMode: "decimal", id: "train-budget", value: (2 * budget).toFixed(2) });
    return h("section.card.budget", { "aria-label": "Budget" },
      h("div.card-head", null, h("h3", null, "The budget is used up")),
      h("p", null, `The run has cost ${money(cost, currency)}. Everything is saved; with a larger budget it goes on.`),
      h("div.buttons", null, h("label", { htmlFor: "train-budget", style: "align-self: center" }, `Budget in all, ${currency}`), input,
        h("button.btn.primary", { type: "button", id: "budget-resume", onclick: () => actions.press("resume", { budget: input.value }) }, icon("play"), "Resume")));
  }

  /** How far a stop has got, and the button that does not wait. */
  class Stopping {
    constructor(server) {
      this.text = h("span");
      this.button = h("button.btn.small.danger", { type: "button", id: "train-hurry", onclick: () => studio.call(server.act({ verb: "hurry", run: studio.live.data.run })).then(() => studio.live.kick(false)) });
      this.element = h("div.notice.warn.stopping", { hidden: true, role: "status" }, icon("stop"), this.text, this.button);
    }

    update({ data, going }) {
      const stop = going[studio.jobOf(data.run)?.id]?.stop;
      this.element.hidden = !stop;
      if (!stop) return;
      this.text.textContent = stop.text;
      this.button.textContent = stop.hurry;
      this.button.hidden = !stop.hurry;
    }
  }

  function planCard(plan) {
    if (!plan?.summary.length) return null;
    const rows = plan.summary.map(([label, value]) => h("div", null, h("dt", null, label), h("dd", null, value)));
    return h("section.card", { "aria-label": "What will be trained" },
      h("div.card-head", null, h("h3", null, "What will be trained"), h("button.btn.quiet", { type: "button", onclick: () => studio.go("recipe") }, "Change the recipe")),
      h("dl.plan", null, rows),
      plan.machine.map(([text, kind]) => h(`p.machine-fit${kind ? `.${kind}` : ""}`, null, text)));
  }

  // The page --------------------------------------------------------------------------------------

  studio.panels.train = (element, server) => {
    const actions = new Actions(server);
    const ladder = new Ladder();
    const chart = new studio.LossChart();
    const matrix = new studio.SampleMatrix({ empty: "The first images are drawn before the first step, so that every later one can be compared with them." });
    const log = new Log();
    const stopping = new Stopping(server);
    const pill = h("span");
    const name = h("h2");
    const message = h("p.muted.message");
    const stored = h("p.muted.message", { id: "train-stored" });
    const figures = h("dl.figures");
    const failure = new Failure(server, actions);
    const plan = h("div");
    const elsewhere = h("p.muted.hint.elsewhere", null, "A run is stored elsewhere, in a bucket say? ",
      h("button.link", { type: "button", id: "go-on-stored", onclick: () => studio.goOnWithStored() }, "Go on with it here"));
    const queue = new studio.QueueCard((message) => studio.call(server.queue(message)));
    const run = h("div.train-run", { hidden: true }, h("div.card", null, figures), h("div.train-columns", null, chart.element, ladder.element), matrix.element, log.element);
    element.replaceChildren(h("div.train", null,
      h("section.card.train-head", { "aria-label": "Training" }, h("div.train-title", null, h("div.train-name", null, name, pill), message, stored), h("div", null, actions.row, actions.why)),
      failure.element, stopping.element, queue.element, plan, run, elsewhere));
    let shownState = null;

    function show(live) {
      actions.show();
      if (studio.step() !== "train") return;
      const { data } = live;
      const { status } = data;
      const state = data.run ? live.state() : "";
      name.textContent = live.projectName(studio.project());
      if (shownState !== state) pill.replaceChildren(studio.statePill(shownState = state));
      message.textContent = !data.run ? "Nothing has been trained in this project yet."
        : live.wantsHelp() ? "" : status.message;
      stored.textContent = data.run ? status.mirror : "";
      run.hidden = !data.run || (state === "queued" && !data.attempt); // nothing to be seen of it yet
      failure.update(data);
      queue.update(live);
      stopping.update(live);
      plan.hidden = Boolean(data.run);
      if (!data.run) return;
      figures.replaceChildren(...numbers(data));
      ladder.update(data);
      chart.update(data);
      matrix.update(data);
      log.update(data);
    }
    studio.on("live", show);
    studio.on("plan", (found) => plan.replaceChildren(...[planCard(found)].filter(Boolean)));
    studio.on("project", () => { actions.plan = null; actions.look(); });
    studio.on("state", () => actions.look());
    studio.on("step", (step) => { if (step === "train") { actions.look(); show(studio.live); } });
    actions.look();
  };
})();
