// The frame around the pages: header, run bar, stepper, welcome, and the title of the tab.
(() => {
  "use strict";
  if (studio.panels.header) return;
  const { h, icon, format, panels } = studio;

  const STATE_WORDS = {
    queued: "Queued", starting: "Starting", downloading: "Loading model", preparing: "Preparing", training: "Training",
    sampling: "Drawing samples", saving: "Saving", stopping: "Stopping", finished: "Finished", stopped: "Stopped",
    failed: "Failed", lost: "Died",
  };
  const STATE_KINDS = { finished: "good", stopped: "warn", failed: "bad", lost: "bad", queued: "", "": "" };
  studio.stateWords = STATE_WORDS;

  /** A state as a word with a sign and a colour. */
  studio.statePill = (state) => {
    const kind = STATE_KINDS[state] ?? "live";
    const sign = { good: icon("check"), warn: icon("stop"), bad: icon("bang") }[kind] ?? h("span.dot");
    return h(`span.pill.${kind || "idle"}`, null, sign, STATE_WORDS[state] ?? "No run yet");
  };

  const MARK = `<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9" fill="var(--accent)"/>
    <path d="M8 9h4v10h5v4H8z" fill="var(--on-accent)"/><path d="M19 23c0-6 1-10 6-14-1 6-1 10-6 14z" fill="var(--on-accent)" opacity=".75"/></svg>`;

  // Header ----------------------------------------------------------------------------------------

  let server = null;

  /** A sheet that asks for a name; `accept(name)` resolves to whether it was taken. */
  function askForName({ title, button, value = "", hint, accept }) {
    const input = h("input", { name: "name", value, maxLength: 80, autocomplete: "off", placeholder: "for example: Luna the cat", required: true });
    const cancel = h("button.btn", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const form = h("form", { onsubmit: async (event) => {
      event.preventDefault();
      if (await accept(input.value)) dialog.close();
    } },
      h("h3", null, title),
      h("label.field", null, "Name", input, h("small", null, hint)),
      h("div.buttons", null, h("button.btn.primary", { type: "submit" }, button), cancel));
    const dialog = h("dialog.sheet", { onclose: () => dialog.remove() }, form);
    document.body.append(dialog);
    dialog.showModal();
    input.select();
  }

  async function newProject(name) {
    const answer = await studio.call(server.create_project({ name }));
    if (answer) studio.open(answer.project, "photos");
    return Boolean(answer);
  }

  async function rename(name) {
    const answer = await studio.call(server.rename_project({ project: studio.project(), name }));
    if (answer) studio.renamed(answer.name);
    return Boolean(answer);
  }

  panels.header = (element, functions) => {
    server = functions;
    studio.goOnWithStored = () => studio.askForStored(server);
    studio.badges = (project) => server.badges({ project });
    const select = h("select", { "aria-label": "Project", onchange: () => studio.open(select.value) });
    const machine = h("div.machine", { "aria-label": "This machine" });
    const brand = h("div.brand");
    brand.innerHTML = MARK;
    brand.append(h("span", null, "LoRA Studio"));
    const theme = h("button.icon-button", { type: "button", "aria-label": "Switch between light and dark", title: "Light or dark", onclick: studio.toggleTheme }, icon("sun"));
    const logout = h("button.icon-button", { type: "button", "aria-label": "Log out", title: "Log out", hidden: true, onclick: async () => {
      await fetch("/logout", { method: "POST" });
      location.reload();
    } }, icon("out"));
    const pen = h("button.icon-button", { type: "button", "aria-label": "Rename this project", title: "Rename", onclick: () => askForName({
      title: "Rename the project", button: "Rename", value: studio.live.projectName(studio.project()), accept: rename,
      hint: "Only what is shown changes; files and finished LoRAs keep their names.",
    }) }, icon("pen"));
    const add = h("button.btn.new-project", { type: "button", onclick: () => askForName({
      title: "New project", button: "Create", accept: newProject, hint: "One project holds the photos of one thing: a pet, a person, a style.",
    }) }, icon("plus"), "New project");
    element.replaceChildren(h("header.head", null, brand, select, pen, add, h("span.spacer"), machine, theme, logout));
    studio.on("projects", (projects) => {
      select.replaceChildren(...projects.map((project) => h("option", { value: project.id }, project.name)));
      select.value = studio.project();
      select.hidden = add.hidden = pen.hidden = !projects.length;
      logout.hidden = !studio.hasPassword();
    });
    studio.on("live", (live) => machine.replaceChildren(...machineLine(live)));
  };

  function machineLine(live) {
    if (!live.online) return [h("span.offline", { role: "status" }, "Reconnecting… nothing is lost")];
    const parts = [];
    if (live.gpu) {
      parts.push(h("b", null, live.gpu.name));
      if (live.gpu.total_gib) parts.push(h("span.number", null, `${format.gib(live.gpu.used_gib)} / ${format.gib(live.gpu.total_gib)} GiB`));
      if (live.gpu.celsius !== null) parts.push(h("span.number", null, `${live.gpu.celsius} °C`));
    } else {
      parts.push(h("b", null, "CPU"), h("span", null, "no GPU"));
    }
    if (live.disk !== null) parts.push(h("span.number", null, `${format.gib(live.disk)} GiB free`));
    return parts;
  }

  // Run bar ---------------------------------------------------------------------------------------

  panels.runbar = (element, server) => {
    let bar = null;
    let pressed = "";
    let announced = "";
    const announcer = h("span.visually-hidden", { "aria-live": "polite" });
    document.body.append(announcer);

    const openQueue = () => studio.go("train");

    /** Nothing is trained: the bar is there only while a paused queue holds something up. */
    function idle(live, waiting) {
      if (!live.queue.paused || !waiting) return void element.replaceChildren();
      if (element.querySelector(".paused .number")?.textContent === String(waiting)) return;
      element.replaceChildren(h("section.runbar.paused", { "aria-label": "The queue" }, h("span.pill.warn", null, icon("pause"), "Paused"),
        h("span", null, h("b.number", null, String(waiting)), " waiting; nothing begins by itself."), h("button.btn.small", { type: "button", onclick: openQueue }, "Open the queue")));
    }

    function build() {
      const parts = {
        pill: h("span"), name: h("span"), fill: h("i"), figures: h("div.gauges"),
        stop: h("button.btn.danger", { type: "button" }, icon("stop"), h("span", null, "Stop")),
      };
      parts.bar = h("div.bar", { role: "progressbar", "aria-label": "Progress of the training", "aria-valuemin": "0", "aria-valuemax": "100" }, parts.fill);
      const who = h("button.who", { type: "button", title: "Open this training", onclick: () => studio.open(studio.live.active.project, "train") }, parts.pill, parts.name);
      parts.waits = h("button.btn.small", { type: "button", hidden: true, title: "Open the queue", onclick: openQueue });
      parts.stop.onclick = async () => {
        const { active } = studio.live;
        pressed = `${active.run}/${active.stop?.rung ?? ""}`;
        show(studio.live);
        const ask = active.stop ? server.hurry : server.stop;
        if (!await studio.call(ask({ run: active.run }))) pressed = "";
        studio.live.kick(false);
      };
      element.replaceChildren(parts.root = h("section.runbar", { "aria-label": "Training in progress" }, who, parts.bar, parts.figures, h("div.runbar-buttons", null, parts.waits, parts.stop)));
      return parts;
    }

    function show(live) {
      const active = working(live);
      title(live);
      const waiting = live.queue.jobs.filter((job) => job.state === "waiting").length;
      if (!active) {
        [bar, pressed] = [null, ""];
        return void idle(live, waiting);
      }
      bar ||= build();
      const here = `${active.run}/${active.stop?.rung ?? ""}`;
      if (pressed !== here) pressed = "";
      const state = pressed ? "stopping" : active.state;
      const share = active.total ? active.step / active.total : 0;
      if (bar.state !== state) bar.pill.replaceChildren(studio.statePill(bar.state = state));
      bar.name.textContent = live.projectName(active.project);
      bar.fill.style.width = `${(100 * share).toFixed(1)}%`;
      bar.bar.setAttribute("aria-valuenow", Math.round(100 * share));
      bar.bar.classList.toggle("unknown", !active.step && state !== "stopping");
      bar.stop.disabled = Boolean(pressed) || Boolean(active.stop && !active.stop.hurry);
      bar.stop.lastChild.textContent = active.stop?.hurry || "Stop";
      bar.waits.hidden = !waiting;
      bar.waits.textContent = `${waiting} waiting`;
      bar.figures.replaceChildren(...[
        active.total && active.step ? h("span", null, h("b", null, format.count(active.step)), ` / ${format.count(active.total)}`) : null,
        active.loss !== null && active.loss !== undefined ? h("span", null, "loss ", h("b", null, format.number(active.loss))) : null,
        active.eta_s !== null && active.eta_s !== undefined ? h("span", null, h("b", null, format.seconds(active.eta_s)), " left") : null,
        active.stop ? h("span", { title: active.stop.text }, h("b", null, `${Math.ceil(active.stop.left_s)} s`), active.stop.rung === "asked" ? " to save and end" : " until it is killed") : null,
        live.online ? null : h("span", null, "reconnecting…"),
      ].filter(Boolean));
      if (announced !== state) announcer.textContent = `${bar.name.textContent}: ${STATE_WORDS[announced = state]}`;
    }
    studio.on("live", show);
    studio.on("state", ({ from, to }) => {
      if (!from || studio.live.TERMINAL.includes(from)) return;
      const name = followedName();
      if (to === "finished") studio.toast(`${name} is finished. The LoRA is on the Results page.`, "good");
      const unasked = studio.live.wantsHelp();
      if (to === "stopped" && from !== "queued" && !unasked) studio.toast(`${name} is stopped and saved. Resume goes on from here.`, "info");
      const onCard = studio.step() === "train"; // its failure card says it already, and says more
      if (unasked && !onCard) studio.toast(studio.live.data.status.message || `${name} failed.`, "bad");
    });
  };
  const followedName = () => studio.live.projectName(studio.live.data.project);

  /** What is being trained; not a trainer that has said its last word and is just leaving. */
  const working = ({ active, TERMINAL }) => (active && !TERMINAL.includes(active.state) ? active : null);

  /** The tab's title tells the progress of what is being trained, else how this project's run ended. */
  function title(live) {
    const { data } = live;
    const active = working(live);
    const sign = { finished: "✓ ", failed: "! ", lost: "! " }[data.status?.state] ?? "";
    if (active) {
      const share = active.total ? `${Math.floor(100 * active.step / active.total)} %` : STATE_WORDS[active.state];
      document.title = `${share} · ${live.projectName(active.project)}`;
    } else {
      document.title = studio.project() ? `${sign}${live.projectName(studio.project())} · LoRA Studio` : "LoRA Studio";
    }
  }

  // Stepper ---------------------------------------------------------------------------------------

  panels.stepper = (element) => {
    const buttons = {};
    const list = h("ol.stepper", null, studio.STEPS.map((step, index) => {
      const mark = h("span.mark", { "aria-hidden": "true" }, String(index + 1));
      const note = h("small");
      const button = h("button", { type: "button", onclick: () => studio.go(step) }, mark, h("span.words", null, h("b", null, studio.LABELS[step]), note));
      buttons[step] = { button, mark, note, number: String(index + 1) };
      return h("li", null, button);
    }));
    element.replaceChildren(h("nav", { "aria-label": "Steps" }, list));

    const current = () => {
      for (const [step, { button }] of Object.entries(buttons)) {
        if (step === studio.step()) button.setAttribute("aria-current", "step");
        else button.removeAttribute("aria-current");
      }
    };
    const signs = { done: ["check", "done"], warn: ["bang", "needs attention"] };
    async function badges() {
      const project = studio.project();
      if (!project) return;
      const states = await studio.badges(project).catch(() => null);
      if (!states || states.error || project !== studio.project()) return;
      for (const [step, { button, mark, note, number }] of Object.entries(buttons)) {
        const { state = "", text = "" } = states[step] ?? {};
        button.className = state;
        const sign = signs[state];
        mark.replaceChildren(sign ? icon(sign[0]) : number);
        note.textContent = text;
        button.title = text;
        button.setAttribute("aria-label", `${studio.LABELS[step]}${sign ? `, ${sign[1]}` : ""}: ${text}`);
      }
    }
    studio.on("step", () => { current(); badges(); });
    studio.on("project", badges);
    studio.on("state", badges);
    studio.on("dataset", badges);
    studio.refreshBadges = badges;
    current();
  };

  // First visit -----------------------------------------------------------------------------------

  const PATH = [
    ["Photos", "Drop 10 to 30 pictures; each is cropped around its face or subject."],
    ["Captions", "Say what is in them, and choose a trigger word."],
    ["Recipe", "Take a preset; every setting explains itself."],
    ["Train", "Watch loss and sample images arrive."],
    ["Results", "Download the LoRA, or publish it."],
  ];

  panels.welcome = (element) => {
    studio.on("projects", (projects) => {
      if (projects.length) return element.replaceChildren();
      if (element.firstChild) return undefined;
      const input = h("input", { "aria-label": "Name of the project", placeholder: "Name it, for example: Luna the cat", maxLength: 80, autocomplete: "off", required: true });
      const form = h("form", { onsubmit: (event) => { event.preventDefault(); newProject(input.value); } },
        input, h("button.btn.primary", { type: "submit" }, "Create project"));
      return element.replaceChildren(h("section.card.empty.welcome", null,
        h("h2", null, "What do you want to teach?"),
        h("p", null, "A pet, a person, an object or a style: a project holds its photos, their captions and the training."),
        form,
        h("p", null, "Or drop the photos below; the project can be named later. Trained before, and stored it elsewhere? ",
          h("button.link", { type: "button", onclick: () => studio.goOnWithStored() }, "Go on with a stored run")),
        h("ol", null, PATH.map(([name, text], index) => h("li", null, h("b", null, `${index + 1}  ${name}`), h("span", null, text))))));
    });
  };
})();
