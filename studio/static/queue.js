// The queue: what runs, what waits in its order, what ended lately. `studio.QueueCard` is drawn by the Train page.
(() => {
  "use strict";
  if (studio.QueueCard) return;
  const { h, icon, format } = studio;

  const KINDS = { train: "Training", sample: "Drawing", caption: "Captions", crop: "Crops", publish: "Publishing", fetch: "Fetching" };
  const WORDS = { waiting: "Waiting", running: "Running", finished: "Finished", stopped: "Stopped", failed: "Failed", cancelled: "Taken out" };
  const SIGNS = { finished: ["good", "check"], stopped: ["warn", "stop"], failed: ["bad", "bang"], cancelled: ["idle", "close"] };
  const OVER = Object.keys(SIGNS);

  /** The job that trains a run, or waits to; undefined where there is none. */
  studio.jobOf = (run) => studio.live.queue.jobs.find((job) => job.run === run && job.kind === "train" && !OVER.includes(job.state));

  studio.QueueCard = class {
    /** `ask(message)` sends a verb to the server and resolves when it is done. */
    constructor(ask) {
      this.ask = ask;
      this.notice = h("p.notice.warn", { hidden: true, role: "status" }, icon("alert"), h("span"));
      this.pause = h("button.btn.small", { type: "button", id: "queue-pause", onclick: () => this.send(this.paused ? "go-on" : "pause") });
      this.clear = h("button.btn.small", { type: "button", id: "queue-clear", onclick: () => this.send("clear") }, "Clear what has ended");
      this.title = h("h3");
      this.list = h("ol.queue");
      this.element = h("section.card.queue-card", { "aria-label": "Queue", hidden: true },
        h("div.card-head", null, this.title, this.clear, this.pause), this.notice, this.list);
      this.progress = new Map();
    }

    async send(verb, id = "") {
      this.element.inert = true; // until the answer is here: a second press would mean another row
      await this.ask({ verb, job: id });
      this.element.inert = false;
      studio.live.kick(false);
    }

    update(live) {
      const { queue } = live;
      if (this.shown !== queue || this.names !== studio.projects()) this.draw(queue);
      for (const [id, show] of this.progress) show(live.going[id]);
    }

    draw(queue) {
      [this.shown, this.names, this.paused] = [queue, studio.projects(), queue.paused];
      const count = (state) => queue.jobs.filter((job) => job.state === state).length;
      const waiting = count("waiting");
      this.element.hidden = !queue.jobs.length && !queue.paused && !queue.notice;
      this.element.classList.toggle("busy", Boolean(waiting || queue.paused || queue.notice || count("running") > 1));
      this.title.textContent = waiting ? `Queue, ${waiting} waiting` : "Queue";
      this.pause.replaceChildren(icon(queue.paused ? "play" : "pause"), queue.paused ? "Let it go on" : "Pause");
      this.pause.classList.toggle("primary", queue.paused);
      this.clear.hidden = !queue.jobs.some((job) => OVER.includes(job.state));
      this.notice.hidden = !queue.notice && !queue.paused;
      this.notice.lastChild.textContent = queue.notice || "The queue is paused: nothing begins by itself. What runs goes on.";
      const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : "";
      this.progress.clear();
      let place = 0;
      this.list.replaceChildren(...queue.jobs.map((job) => this.row(job, job.state === "waiting" ? place += 1 : 0, waiting)));
      if (focused) [...this.list.querySelectorAll("[data-key]")].find((button) => button.dataset.key === focused)?.focus();
    }

    row(job, place, waiting) {
      const name = studio.live.projectName(job.project) || job.run || "A stored run";
      const button = (verb, sign, label, off = false) => h("button.icon-button", {
        type: "button", title: label, "aria-label": `${label}: ${name}`, disabled: off, "data-key": `${verb} ${job.id}`, onclick: () => this.send(verb, job.id),
      }, icon(sign));
      const target = job.kind === "publish" || job.kind === "sample" ? "results" : ["train", "fetch"].includes(job.kind) ? "train" : job.kind === "caption" ? "captions" : "photos";
      const who = h("button.who", { type: "button", title: "Open it", disabled: !job.project, onclick: () => studio.open(job.project, target) }, h("b", null, name),
        h("span.muted", null, [KINDS[job.kind], job.detail, job.gpu ? `GPU ${job.gpu}` : ""].filter(Boolean).join(" · ")));
      const note = h("p.muted", null, job.message);
      const buttons = [];
      let mark;
      if (place) {
        mark = h("span.mark.number", { title: "Place in line" }, String(place));
        buttons.push(button("up", "up", "Earlier", place === 1), button("down", "down", "Later", place === waiting), button("cancel", "close", "Take out of the queue"));
      } else if (job.state === "running") {
        mark = h("span.pill.live", null, h("span.dot"), WORDS.running);
        const stop = h("button.btn.small.danger", { type: "button", "data-key": `stop ${job.id}` }, "Stop");
        this.progress.set(job.id, (now) => {
          const done = now?.total ? `${format.count(now.step)} of ${format.count(now.total)}` : "";
          const share = done && ({ sample: `${done} drawn`, train: `step ${done}` }[job.kind] ?? now.said);
          note.textContent = now?.stop?.text ?? (share || now?.said || "");
          stop.textContent = now?.stop?.hurry || "Stop";
          stop.hidden = Boolean(now?.stop) && !now.stop.hurry;
          stop.onclick = () => this.send(now?.stop ? "hurry" : "cancel", job.id);
        });
        buttons.push(stop);
      } else {
        const [kind, sign] = SIGNS[job.state];
        mark = h(`span.pill.${kind}`, null, icon(sign), WORDS[job.state]);
        const again = job.kind !== "train" ? "Try again" : job.state === "cancelled" ? "Queue again" : "Resume";
        if (job.state !== "finished") buttons.push(h("button.btn.small", { type: "button", "data-key": `retry ${job.id}`, onclick: () => this.send("retry", job.id) }, again));
        buttons.push(button("remove", "close", "Remove from this list"));
        note.textContent = [job.when, job.message].filter(Boolean).join(" · ");
      }
      return h(`li.${job.state}`, { "data-job": job.id }, mark, h("div.what", null, who, note), h("div.row-buttons", null, buttons));
    }
  };
})();
