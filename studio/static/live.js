// studio.live: the one poller of a tab. It asks /studio/live once a second for what is new in the run that
// the tab follows, folds it into `studio.live.data`, and tells everyone who listens to "live".
(() => {
  "use strict";
  if (studio.live) return;

  const TERMINAL = ["finished", "stopped", "failed", "lost"];
  const LOG_LINES = 4000;
  const LINE_LENGTH = 2000; // of what is kept of a line; a flood without line ends must not fill the page

  /** What is known of a run: the current events only, in columns. */
  function fresh(run = null) {
    return {
      run, project: studio.project(), attempt: 0, status: null, result: null, end: null, revision: 0,
      series: { step: [], loss: [], lr: [] },
      samples: new Map(), prompts: new Map(), controls: new Set(), stages: new Map(), validation: [], checkpoints: [], warnings: [], adapted: [], resumes: [],
      log: [], logTail: "", logCount: 0,
    };
  }

  /** Take one event in. A resume from step N voids what earlier attempts did beyond it. */
  function fold(data, event) {
    if (event.attempt !== data.attempt) {
      Object.assign(data, { attempt: event.attempt, stages: new Map(), warnings: [], end: null });
    }
    switch (event.kind) {
      case "started": {
        const { series } = data;
        while (series.step.length && series.step.at(-1) > event.step) for (const column of Object.values(series)) column.pop();
        for (const [key, sample] of data.samples) if (sample.step > event.step) data.samples.delete(key);
        data.checkpoints = data.checkpoints.filter((checkpoint) => checkpoint.step <= event.step);
        data.validation = data.validation.filter((measured) => measured.step <= event.step);
        data.resumes = data.resumes.filter((step) => step <= event.step);
        if (event.attempt > 1) data.resumes.push(event.step);
        break;
      }
      case "stage":
        data.stages.set(event.stage, event);
        break;
      case "step":
        if (event.step <= (data.series.step.at(-1) ?? 0)) break;
        data.series.step.push(event.step);
        data.series.loss.push(event.loss);
        data.series.lr.push(event.lr);
        break;
      case "validation": // a resumed run measures the step it was saved at again, with the same outcome
        data.validation = data.validation.filter((measured) => measured.step !== event.step);
        data.validation.push({ step: event.step, loss: event.loss });
        break;
      case "sample":
        data.prompts.set(event.prompt, event.text ?? data.prompts.get(event.prompt) ?? "");
        data.samples.set(`${event.step}/${event.prompt}`, {
          step: event.step, prompt: event.prompt,
          url: `/studio/sample/${data.run}/${encodeURIComponent(event.file.split("/").pop())}?v=${event.seq}`,
        });
        break;
      case "measured": // a prompt without the trigger word shows what the LoRA does to all else
        if (!event.trigger) data.controls.add(event.prompt);
        break;
      case "checkpoint":
        data.checkpoints = data.checkpoints.filter((checkpoint) => checkpoint.step !== event.step);
        data.checkpoints.push({ step: event.step, time: event.time });
        break;
      case "adapted": // holds for all attempts that follow
        data.adapted.push(event.text);
        break;
      case "warning":
        data.warnings.push(event.text);
        break;
      case "end":
        data.end = event;
        break;
    }
  }

  /** Log text arrives in pieces; a carriage return rewrites its line, as on a terminal. */
  function foldLog(data, text) {
    const last = (line) => {
      const shown = line.replace(/\r+$/, "").split("\r").pop();
      return shown.length > LINE_LENGTH ? `${shown.slice(0, LINE_LENGTH)}…` : shown;
    };
    const lines = (data.logTail + text).split("\n");
    const tail = lines.pop();
    data.logTail = tail.endsWith("\r") || tail.length > 2 * LINE_LENGTH ? `${last(tail)}${tail.endsWith("\r") ? "\r" : ""}` : tail;
    data.log.push(...lines.map(last));
    data.logCount += lines.length;
    if (data.log.length > LOG_LINES) data.log.splice(0, data.log.length - LOG_LINES);
  }

  const live = {
    data: fresh(), active: null, queue: { paused: false, notice: "", jobs: [] }, going: {}, gpu: null, disk: null, online: true, TERMINAL, fold, foldLog, fresh, kick,
    state: () => live.data.status?.state ?? "",
    /** Whether the run that is followed ended by itself before its end, so that a person has to see to it. */
    wantsHelp: () => ["failed", "lost"].includes(live.state()) || (live.state() === "stopped" && Boolean(live.data.status.cause)),
    /** Whether a trainer lives for it. */
    alive: () => Boolean(live.data.run && live.data.status && !TERMINAL.includes(live.state()) && live.state() !== "queued"),
    projectName: (id) => studio.projects().find((project) => project.id === id)?.name ?? id ?? "",
  };
  let offset = 0;
  let logOffset = 0;
  let queueTag = "";
  let failures = 0;
  let timer = 0;
  let running = false;
  let again = false;

  function forget() {
    live.data = fresh();
    offset = logOffset = 0;
  }

  function take(answer) {
    if (answer.reset || answer.run !== live.data.run) {
      live.data = fresh(answer.run);
      studio.emit("run", answer.run);
    }
    const { data } = live;
    const before = data.status;
    for (const event of answer.events) fold(data, event);
    if (answer.log) foldLog(data, answer.log);
    if (answer.events.length || answer.log) data.revision += 1;
    [offset, logOffset] = [answer.offset, answer.log_offset];
    Object.assign(data, { status: answer.status, result: answer.result });
    const activeBefore = live.active;
    if (answer.queue) [live.queue, queueTag] = [answer.queue, answer.queue_tag];
    Object.assign(live, { active: answer.active, going: answer.going, gpu: answer.gpu, disk: answer.disk_free_gib });
    if (before?.state !== data.status?.state || activeBefore?.run !== live.active?.run) {
      studio.emit("state", { from: before?.state, to: data.status?.state });
    }
  }

  async function ask() {
    const project = studio.project();
    if (!project) return;
    if (live.data.project !== project) forget();
    const query = new URLSearchParams({ project, run: live.data.run ?? "", offset, log: logOffset, queue: queueTag });
    const answer = await studio.fetchJSON(`/studio/live?${query}`);
    if (studio.project() !== project) return void (again = true);
    take(answer);
    if (answer.latest !== answer.run) {
      forget(); // a newer run of this project was started, here or elsewhere: follow that one
      again = true;
    }
  }

  async function tick() {
    if (running) return void (again = true);
    clearTimeout(timer);
    running = true;
    again = false;
    try {
      await ask();
      failures = 0;
    } catch (error) {
      failures += 1;
      if (!(error instanceof studio.Unreachable)) console.warn(String(error));
    }
    running = false;
    live.online = failures < 2; // one lost answer is no news
    studio.emit("live", live);
    const pause = failures ? Math.min(1000 * 2 ** (failures - 1), 10000) : live.active ? 1000 : 2000;
    timer = setTimeout(tick, again ? 0 : document.hidden ? Math.max(pause, 5000) : pause);
  }

  /** Ask now. With `newest`, let go of the run that is followed and take up the project's newest. */
  function kick(newest = true) {
    if (newest) forget();
    tick();
  }

  studio.on("project", () => kick());
  document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
  addEventListener("online", () => tick());
  studio.live = live;
})();
