// The Photos page: every picture with its crop frame, the buckets, and what is worth knowing of the dataset.
(() => {
  "use strict";
  if (studio.panels.photos) return;
  const { h, icon } = studio;

  const FINDINGS_SHOWN = 5;
  const thumb = (image) => `/studio/thumb/${studio.project()}/${image.id}.webp?v=${image.v}`;
  const crop = (image) => `/studio/crop/${studio.project()}/${image.id}.webp?v=${image.v}`;
  const veil = (image) => `/studio/mask/${studio.project()}/${image.id}.webp?v=${image.mask}`;
  const size = (bucket) => (bucket ? `${bucket[0]} × ${bucket[1]}` : "not cropped");

  /** The whole picture, with all that is not trained on dimmed, what its mask hides red, and the crop outlined. Numbers only: no escaping. */
  function shot(image, lazy = true) {
    const { width, height } = image;
    const picture = h("img", { src: thumb(image), alt: image.name, width, height, loading: lazy ? "lazy" : "eager", decoding: "async", draggable: false });
    const frame = h("div.shot", { style: `aspect-ratio: ${width} / ${height}; ${width >= height ? "width: 100%" : "height: 100%"}` }, picture,
      image.mask ? h("img", { src: veil(image), alt: "", width, height, loading: lazy ? "lazy" : "eager", decoding: "async", draggable: false }) : null);
    if (image.crop) {
      const [left, top, right, bottom] = image.crop;
      const inner = `M${left} ${top}H${right}V${bottom}H${left}Z`;
      frame.insertAdjacentHTML("beforeend", `<svg viewBox="0 0 ${width} ${height}" aria-hidden="true">
        <path class="outside" fill-rule="evenodd" d="M0 0H${width}V${height}H0Z${inner}"/>
        <path class="frame under" d="${inner}"/><path class="frame" d="${inner}"/></svg>`);
    }
    return frame;
  }

  /** A question with one way to go on; resolves to whether it was taken. */
  function ask(question, detail, yes) {
    return new Promise((resolve) => {
      const form = h("form", { method: "dialog" }, h("h3", null, question), h("p.muted", null, detail),
        h("div.buttons", null, h("button.btn.danger", { value: "yes" }, yes), h("button.btn", { value: "", autofocus: true }, "Cancel")));
      const dialog = h("dialog.sheet", { "aria-label": question, onclose: () => { resolve(dialog.returnValue === "yes"); dialog.remove(); } }, form);
      document.body.append(dialog);
      dialog.showModal();
    });
  }

  // Photos go to the project that was open when they were dropped; minutes later, when all of them have
  // arrived, it may be another one.
  let target = null;
  for (const happening of ["drop", "change"]) {
    document.addEventListener(happening, (event) => { if (event.target.closest?.("#photos-drop")) target = studio.project(); }, true);
  }
  studio.droppedInto = () => {
    const project = target ?? studio.project();
    target = null;
    return project;
  };

  /** Project -> what became of the files that were dropped into it, until one goes elsewhere. */
  const reports = new Map();

  /** An upload is through. Its report stays with its project, whichever is open by now. */
  studio.uploaded = (report) => {
    const { project, kind, parts } = report;
    const line = parts.join(" · ");
    if (!project) return studio.toast(line, kind); // not even a project could be made for it
    reports.set(project, report);
    if (!studio.project()) return studio.open(project, "photos");
    if (project === studio.project()) return studio.emit("dataset");
    return studio.toast(`${studio.live.projectName(project)}: ${line}`, kind);
  };

  function reportNotice({ kind, parts, reasons }) {
    return h(`div.notice.${kind}`, { role: kind === "bad" ? "alert" : "status" }, icon(kind === "good" ? "check" : "alert"), h("div", null,
      h("p", null, h("b", null, parts[0]), parts.slice(1).map((part) => ` · ${part}`)),
      reasons.length ? h("ul.reasons", null, reasons.map((reason) => h("li", null, reason))) : null));
  }

  studio.panels.photos = (element, server) => {
    let data = null;
    let loadedFor = "";
    let at = ""; // the project whose photos one is looking at
    let cropping = "";
    let watched = ""; // the job that crops them
    let missed = 0;
    let timer = 0;
    let allFindings = false;
    const tiles = new Map();
    const grid = h("div.photo-grid", { role: "list", "aria-label": "Photos" });
    const head = h("div");
    const notes = h("div.photo-notes");
    const said = h("div.said");
    const crops = h("div.notice", { role: "status", hidden: true });
    element.replaceChildren(h("div.photos", null, said, head, crops, notes, grid));

    function tell() {
      const report = reports.get(studio.project());
      if (said.report === report) return; // drawn again it would be read out again
      said.report = report;
      said.replaceChildren(...(report ? [reportNotice(report)] : []));
    }

    async function load() {
      clearTimeout(timer);
      const answer = await studio.dataset((notice) => { if (!data) notes.replaceChildren(notice); });
      if (!answer) return;
      data = answer;
      loadedFor = answer.project;
      show();
      if (answer.checking) timer = setTimeout(load, 1500);
      await cropAgain(answer.project);
    }

    /** Crops that are missing, or were made for another size than the recipe now trains at, are made anew: by
        a job of the queue, which is asked for once. */
    async function cropAgain(project) {
      const wanted = `${project} ${data.buckets}`;
      if (!data.stale || cropping === wanted) return;
      cropping = wanted;
      const answer = await studio.call(server.recrop({ project }));
      if (!answer) return;
      [watched, missed] = [answer.job, 0];
      follow(studio.live);
      studio.live.kick(false);
    }

    /** How the crops of this project get on, whoever asked for them. They are shown when all are made. */
    function follow({ queue, going }) {
      const mine = queue.jobs.filter((job) => job.kind === "crop" && job.project === studio.project());
      const now = mine.find((job) => ["waiting", "running"].includes(job.state));
      const ended = now ? null : mine.find((job) => job.id === watched);
      missed = now || ended ? 0 : missed + 1;
      if (now) watched = now.id;
      if (ended?.state === "failed") studio.toast(`The crops could not be made: ${ended.message}`, "bad");
      const over = watched && (ended || missed > 5); // taken off the list before it was seen
      if (over) watched = "";
      const [, done, total] = /^\[(\d+)\/(\d+)\]/.exec(going[now?.id]?.said ?? "") ?? [];
      const text = now?.state === "waiting" && queue.paused ? "New crops wait: the queue is paused."
        : `Choosing crops for ${data?.resolution ?? "…"} px…${done ? ` ${done} of ${total}` : ""}`;
      crops.hidden = !watched;
      if (crops.textContent !== text) crops.textContent = text;
      if (over) load();
    }

    function show() {
      const { images } = data;
      head.replaceChildren(...(images.length ? [summary(images)] : [empty()]));
      notes.replaceChildren(...findings());
      const warned = new Map();
      for (const finding of data.findings) if (finding.id) warned.set(finding.id, [...(warned.get(finding.id) ?? []), finding]);
      const wanted = new Set();
      let place = grid.firstElementChild;
      for (const image of images) {
        wanted.add(image.id);
        const key = JSON.stringify([image, warned.get(image.id)]);
        let tile = tiles.get(image.id);
        if (!tile || tile.key !== key) {
          const made = { key, element: makeTile(image, warned.get(image.id) ?? []) };
          if (tile) {
            if (place === tile.element) place = made.element;
            tile.element.replaceWith(made.element);
          }
          tiles.set(image.id, tile = made);
        }
        if (place === tile.element) place = place.nextElementSibling;
        else grid.insertBefore(tile.element, place);
      }
      for (const [id, tile] of tiles) {
        if (wanted.has(id)) continue;
        tile.element.remove();
        tiles.delete(id);
      }
    }

    function empty() {
      return h("div.empty", null, h("h3", null, "No photos yet"),
        h("p", null, "10 to 30 varied photos teach a subject well: near and far, different backgrounds and light. Captions in .txt files of the same name come along, and masks in pictures named like cat-mask.png."));
    }

    function summary(images) {
      const enabled = images.filter((image) => image.enabled);
      const counts = new Map();
      for (const image of enabled) counts.set(size(image.bucket), (counts.get(size(image.bucket)) ?? 0) + 1);
      const rows = [...counts].sort((a, b) => b[1] - a[1]);
      const most = Math.max(...rows.map(([, count]) => count), 1);
      const out = images.length - enabled.length;
      const title = `${enabled.length} photo${enabled.length === 1 ? "" : "s"}${out ? ` · ${out} left out` : ""}`;
      return h("section.card.buckets", { "aria-label": "Buckets" },
        h("div.card-head", null, h("h3", null, title), h("span.muted", null, `trained at ${data.resolution} px`)),
        h("dl", null, rows.map(([name, count]) => h("div", null, h("dt.number", null, name),
          h("dd", null, h("i", { style: `width: ${(100 * count / most).toFixed(1)}%` }), h("span.number", null, String(count)))))),
        h("div.buttons.next", null, h("button.btn.primary", { type: "button", onclick: () => studio.go("captions") }, "Next: captions")));
    }

    function findings() {
      const found = data.images.length ? data.findings : [];
      const few = allFindings ? found : found.slice(0, FINDINGS_SHOWN);
      const rows = few.map((finding) => {
        const image = data.images.find(({ id }) => id === finding.id);
        const text = [h("b", null, finding.sentence), " ", finding.remedy];
        const body = image ? h("button.link", { type: "button", onclick: () => view(image.id) }, ...text) : h("span", null, ...text);
        return h(`li.${finding.level}`, null, icon("alert"), body);
      });
      if (!rows.length) return [];
      const more = found.length - few.length;
      return [h("ul.findings", { "aria-label": "About these photos" }, rows,
        more ? h("li", null, h("button.link", { type: "button", onclick: () => { allFindings = true; show(); } }, `Show ${more} more`)) : null)];
    }

    function makeTile(image, found) {
      const problems = [...image.warnings, ...found.map(({ sentence }) => sentence)];
      const reason = image.reason || "Not cropped yet";
      const open = h("button.open", { type: "button", title: [image.name, reason, ...problems].join("\n"), "aria-label": `${image.name}: ${reason}`, onclick: () => view(image.id) }, shot(image));
      const use = h("input", { type: "checkbox", checked: image.enabled, "aria-label": `Train on ${image.name}`, onchange: () => enable(image.id, use.checked) });
      return h(`article.tile${image.enabled ? "" : ".out"}`, { role: "listitem" }, open,
        h("p.reason", { "aria-hidden": "true" }, reason),
        h("div.tile-foot", null, h("label", { title: "Train on this photo" }, use, h("span.badge.number", null, size(image.bucket)), image.mask ? h("span.badge", { title: "Has a mask: what is red is hardly learnt, if the recipe says so" }, "mask") : null),
          problems.length ? h("span.sign", { title: problems.join("\n"), role: "img", "aria-label": problems.join(" ") }, icon("alert")) : null));
    }

    async function enable(id, enabled) {
      const image = data.images.find((each) => each.id === id);
      try {
        await studio.post(`/studio/enabled/${studio.project()}/${id}`, { enabled });
        if (image) image.enabled = enabled;
      } catch (error) {
        studio.toast(error.message, "bad");
      }
      show();
      studio.refreshBadges?.();
    }

    async function remove(image) {
      const sure = await ask(`Delete ${image.name}?`, "The photo and its caption are removed from this project. To keep it but not train on it, untick it instead.", "Delete");
      if (!sure || !await studio.call(server.remove({ project: studio.project(), id: image.id }))) return false;
      data.images = data.images.filter(({ id }) => id !== image.id);
      data.findings = data.findings.filter(({ id }) => id !== image.id);
      show();
      studio.refreshBadges?.();
      load();
      return true;
    }

    /** The big view: the photo with its frame beside what the trainer will see. Arrows move, space includes. */
    function view(id) {
      const body = h("div.viewer-body");
      const dialog = h("dialog.photo-viewer", { tabIndex: -1, "aria-label": "Photo", onclose: () => { dialog.remove(); tiles.get(id)?.element.querySelector(".open")?.focus(); }, onclick: (event) => { if (event.target === dialog) dialog.close(); } }, body);
      const at = () => data.images.findIndex((image) => image.id === id);
      const move = (by) => {
        const next = data.images[at() + by];
        if (next) draw(id = next.id);
      };
      dialog.onkeydown = (event) => {
        if (event.key === "ArrowLeft") move(-1);
        else if (event.key === "ArrowRight") move(1);
        else if (event.key === "x") toggle();
        else if (event.key === "Delete") drop();
        else return;
        event.preventDefault();
      };
      const toggle = async () => { await enable(id, !data.images[at()].enabled); draw(); };
      const drop = async () => {
        const place = at();
        if (!await remove(data.images[place])) return;
        const next = data.images[Math.min(place, data.images.length - 1)];
        if (next) draw(id = next.id); else dialog.close();
      };
      function draw() {
        const place = at();
        const image = data.images[place];
        const step = (by, name, text) => h("button.icon-button", { type: "button", disabled: !data.images[place + by], "aria-label": text, title: `${text} (arrow key)`, onclick: () => move(by) }, icon(name));
        const found = data.findings.filter((finding) => finding.id === id);
        body.replaceChildren(
          h("header", null, step(-1, "left", "Previous photo"), h("div", null, h("b", null, image.name), h("small.muted.number", null, `${place + 1} of ${data.images.length} · ${image.width} × ${image.height} px`)), step(1, "right", "Next photo"),
            h("button.icon-button.close", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"))),
          h("div.pair", null,
            h("figure", null, h("div.stage", null, shot(image, false)), h("figcaption", null, "The photo and its crop")),
            h("figure", null, h("div.stage", null, image.bucket ? h("img.crop", { src: crop(image), alt: "The crop", width: image.bucket[0], height: image.bucket[1] }) : h("span.muted", null, "not cropped yet")), h("figcaption", null, `What is trained: ${size(image.bucket)}`))),
          h("p.reasoning", null, image.reason ? image.reason[0].toUpperCase() + image.reason.slice(1) + "." : "Not cropped yet."),
          ...[...image.warnings].map((text) => h("p.say.warning", null, `${text[0].toUpperCase()}${text.slice(1)}.`)),
          ...found.map((finding) => h(`p.say.${finding.level}`, null, `${finding.sentence} ${finding.remedy}`)),
          h("p.caption", null, image.caption || h("span.muted", null, "No caption: the trigger word stands in for it.")),
          h("div.buttons", null,
            h("button.btn", { type: "button", onclick: toggle, title: "x" }, image.enabled ? "Leave out of training" : "Train on it again"),
            h("button.btn.quiet", { type: "button", onclick: () => { dialog.close(); studio.go("captions"); } }, "Edit captions"),
            h("button.btn.danger", { type: "button", onclick: drop }, "Delete")));
        if (!dialog.contains(document.activeElement)) dialog.focus(); // else the keys would go to the page
      }
      draw();
      document.body.append(dialog);
      dialog.showModal();
    }

    const visit = () => {
      const here = studio.step() === "photos" ? studio.project() : "";
      if (at !== here) reports.delete(at); // it was seen
      at = here;
      tell();
      if (studio.project() !== loadedFor) {
        data = null;
        loadedFor = "";
        watched = "";
        crops.hidden = true;
        allFindings = false;
        tiles.clear();
        for (const part of [grid, head, notes]) part.replaceChildren();
      }
      if (studio.step() === "photos") load();
    };
    studio.on("step", visit);
    studio.on("project", visit);
    studio.on("live", (live) => { if (studio.step() === "photos" && studio.project() === loadedFor) follow(live); });
    studio.on("dataset", () => { tell(); load(); studio.refreshBadges?.(); });
    visit();
  };
})();
