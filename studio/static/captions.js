// The Captions page: the trigger word, every photo beside its caption, bulk changes with preview and undo.
(() => {
  "use strict";
  if (studio.panels.captions) return;
  const { h, icon } = studio;

  const SAVE_AFTER_MS = 600;
  const RETRY_MS = 4000;
  const CHIPS = 24;
  const BULK = {
    replace: "Find and replace", prefix: "Put before", suffix: "Put after", trigger: "Insert the trigger where it is missing",
  };
  const words = (text) => text.trim().toLowerCase().replace(/\s+/g, " ");
  const tags = (text) => [...new Set(text.split(",").map(words).filter(Boolean))];
  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

  /** The part of two texts that differs: what they share at both ends, and the middles. */
  function difference(before, after) {
    let start = 0;
    while (start < before.length && before[start] === after[start]) start += 1;
    let end = 0;
    while (end < Math.min(before.length, after.length) - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
    const cut = (text) => text.slice(start, text.length - end);
    return [before.slice(0, start), cut(before), cut(after), before.slice(before.length - end)];
  }

  studio.panels.captions = (element, server) => {
    let data = null;
    let loadedFor = "";
    let filter = "all";
    let search = "";
    let limit = null;
    const cards = new Map();
    const ask = (name, message) => studio.call(server[name]({ project: studio.project(), ...message }));

    // The skeleton is built once, so that nothing that is typed in is ever replaced ------------------

    const trigger = h("input", { type: "text", id: "captions-trigger", maxLength: 100, autocomplete: "off", spellcheck: false, placeholder: "for example: zwx cat" });
    const triggerState = h("span.saved", { role: "status" });
    const triggerHint = h("p.say", { id: "captions-trigger-hint" });
    trigger.setAttribute("aria-describedby", "captions-trigger-hint");
    const insert = h("button.btn", { type: "button", hidden: true, onclick: () => choose("trigger", true) });
    const filters = h("div.chips", { role: "group", "aria-label": "Show" });
    const find = h("input", { type: "search", placeholder: "Search captions", "aria-label": "Search captions" });
    const cloud = h("div.chips", { "aria-label": "Most frequent tags" });
    const cloudCard = h("details.card", null, h("summary", null, "Frequent tags"), cloud);
    const list = h("div.caption-list", { role: "list", "aria-label": "Captions" });
    const notes = h("div");
    const bulk = makeBulk();
    const writer = new studio.CaptionWriter({
      server, flush: flushAll, changed: load, empty: () => [...cards.values()].filter((card) => !card.text().trim()).length, photos: () => cards.size,
    });
    const page = h("div.captions", null,
      h("section.card", null,
        h("div.row.trigger-row", null, h("label", { htmlFor: "captions-trigger" }, h("b", null, "Trigger word")), trigger, triggerState),
        triggerHint, insert),
      writer.element, bulk.element, cloudCard,
      h("div.row", null, filters, find),
      notes, list,
      h("div.buttons", { style: "justify-content: flex-end" }, h("button.btn.primary", { type: "button", onclick: () => studio.go("recipe") }, "Next: recipe")));
    element.replaceChildren(page);

    // Loading ----------------------------------------------------------------------------------------

    async function load() {
      const asked = performance.now();
      const answer = await studio.dataset((notice) => { if (!data) notes.replaceChildren(notice); });
      if (!answer) return;
      data = answer;
      loadedFor = answer.project;
      if (document.activeElement !== trigger) trigger.value = data.trigger;
      draw(asked);
      count(data.images.map(({ id }) => id));
      const about = await ask("about");
      if (about && answer.project === studio.project()) showAbout(about);
    }

    function showAbout({ hint, undo }) {
      triggerHint.textContent = hint.text;
      triggerHint.className = `say ${hint.kind === "warn" ? "warning" : ""}`;
      bulk.undoable(undo);
    }

    /** `asked`: when the server was asked for the data that is drawn. */
    function draw(asked) {
      const { images } = data;
      page.classList.toggle("none", !images.length);
      for (const part of [writer.element, bulk.element, list, filters.parentElement]) part.hidden = !images.length;
      notes.replaceChildren(...(images.length ? [] : [h("div.card.empty", null, h("h3", null, "Nothing to caption yet"),
        h("p", null, "Add photos first; their captions are written here."),
        h("div.buttons", null, h("button.btn.primary", { type: "button", onclick: () => studio.go("photos") }, "Add photos")))]));
      for (const image of images) {
        let card = cards.get(image.id);
        if (!card) {
          cards.set(image.id, card = makeCard(image));
          list.append(card.element);
        }
        card.update(image, asked);
      }
      const known = new Set(images.map(({ id }) => id));
      for (const [id, card] of cards) {
        if (known.has(id)) continue;
        card.element.remove();
        cards.delete(id);
      }
      tally();
    }

    const lacks = (text) => {
      const wanted = data.trigger.trim();
      if (!wanted || !text.trim()) return false;
      const pattern = wanted.split(/\s+/).map(escaped).join("\\s+");
      return !new RegExp(`(?<![\\p{L}\\p{N}_])${pattern}(?![\\p{L}\\p{N}_])`, "iu").test(text);
    };
    const FILTERS = {
      all: ["All", () => true],
      missing: ["Trigger missing", (text) => lacks(text)],
      empty: ["Empty", (text) => !text.trim()],
      long: ["Too long", (text, card) => limit !== null && card.tokens > limit],
    };

    /** Counts on the filters, the tag cloud, and which cards are shown. The card in hand is never hidden. */
    function tally() {
      const all = [...cards.values()];
      if (!Object.hasOwn(FILTERS, filter)) filter = "all";
      filters.replaceChildren(...Object.entries(FILTERS).map(([name, [label, test]]) => {
        const many = all.filter((card) => test(card.text(), card)).length;
        if (name === "long" && !many && filter !== "long") return null;
        return h("button.chip", { type: "button", "aria-pressed": String(name === filter), onclick: () => { filter = name; tally(); } }, label, h("b", null, String(many)));
      }).filter(Boolean));
      const needle = search.toLowerCase();
      for (const card of all) {
        const text = card.text();
        const hit = FILTERS[filter][1](text, card) && (!needle || text.toLowerCase().includes(needle));
        card.element.hidden = !hit && !card.element.contains(document.activeElement);
      }
      writer.count();
      const missing = all.filter((card) => lacks(card.text())).length;
      insert.hidden = !missing;
      insert.textContent = `Insert it into ${missing} caption${missing === 1 ? "" : "s"} that lack${missing === 1 ? "s" : ""} it`;
      const counts = new Map();
      for (const card of all) for (const tag of tags(card.text())) counts.set(tag, (counts.get(tag) ?? 0) + 1);
      const frequent = [...counts].filter(([tag, many]) => many > 1 && tag.length <= 60).sort((a, b) => b[1] - a[1]).slice(0, CHIPS);
      cloudCard.hidden = !frequent.length;
      cloud.replaceChildren(...frequent.map(([tag, many]) => h("span.chip.two", null,
        h("button.name", { type: "button", title: `Show the captions with “${tag}”`, onclick: () => { find.value = search = tag; tally(); } }, `${tag} `, h("b", null, `${many}/${all.length}`)),
        h("button", { type: "button", "aria-label": `Remove ${tag} everywhere`, title: "Remove it everywhere; what is not named becomes part of the trigger word", onclick: () => bulk.propose({ kind: "remove", text: tag }) }, icon("close")))));
    }

    // One photo and its caption -----------------------------------------------------------------------

    function makeCard(image) {
      const box = h("textarea", { rows: 3, maxLength: 5000, "aria-label": `Caption of ${image.name}`, spellcheck: true });
      const state = h("span.saved", { role: "status" });
      const flags = h("span");
      const picture = h("img", { alt: "", loading: "lazy", decoding: "async", width: 132, height: 132 });
      const name = h("div.name");
      const read = makeReading(image.id, () => box.value);
      const article = h("article.caption-card", { role: "listitem" }, picture, h("div.edit", null, name, box, h("div.foot", null, flags, read.button, state)), read.element);
      const project = loadedFor; // a picture has the same id in every project that holds it
      let saved = image.caption;
      let savedAt = 0;
      let timer = 0;
      let sending = false;
      const card = { element: article, tokens: 0, text: () => box.value, update, flush, show };
      box.value = saved;

      function say(text, kind = "") {
        state.textContent = text;
        state.className = `saved ${kind}`;
      }
      function show() {
        const parts = [];
        const text = box.value;
        if (!text.trim()) parts.push(h("span", null, data.trigger ? `empty: “${data.trigger}” stands in` : "empty"));
        else if (lacks(text)) parts.push(h("span.flag", null, "trigger missing"));
        const size = limit === null ? `${[...text].length} characters` : `${card.tokens} of ${limit} tokens`;
        if (text.trim()) parts.push(h(limit !== null && card.tokens > limit ? "span.over" : "span", null, size + (limit !== null && card.tokens > limit ? ": the end is cut off" : "")));
        flags.replaceChildren(...parts.flatMap((part, index) => (index ? [" · ", part] : [part])));
      }
      async function save() {
        clearTimeout(timer);
        if (sending) return void (timer = setTimeout(save, 200));
        const text = box.value;
        if (text.trim() === saved.trim()) return say("");
        sending = true;
        say("Saving…");
        try {
          await studio.post(`/studio/caption/${project}/${image.id}`, { text });
          [saved, savedAt] = [text, performance.now()];
          say(box.value === text ? "Saved" : "Saving…", "good");
          count([image.id]);
          read.refresh();
          studio.refreshBadges?.();
        } catch (error) {
          const away = error instanceof studio.Unreachable;
          say(away ? "Not saved yet, trying again…" : error.message, "bad");
          if (away) timer = setTimeout(save, RETRY_MS);
        }
        sending = false;
        if (box.value !== text) timer = setTimeout(save, SAVE_AFTER_MS);
      }
      /** The page goes away: send what is not saved yet, without waiting. */
      function flush() {
        if (box.value.trim() === saved.trim()) return;
        fetch(`/studio/caption/${project}/${image.id}`, {
          method: "POST", keepalive: true, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text: box.value }),
        }).catch(() => {});
      }
      /** News from the server. What is being typed, or was saved after the server was asked, stays. */
      function update(fresh, asked) {
        image = fresh;
        name.textContent = name.title = fresh.name;
        const url = `/studio/thumb/${project}/${fresh.id}.webp?v=${fresh.v}`;
        if (picture.getAttribute("src") !== url) picture.src = url;
        article.classList.toggle("out", !fresh.enabled);
        const current = !sending && savedAt < asked;
        if (current && box.value.trim() === saved.trim() && fresh.caption !== saved.trim()) box.value = fresh.caption;
        if (current && box.value.trim() === fresh.caption.trim()) saved = fresh.caption;
        show();
      }
      box.oninput = () => {
        say("…");
        show();
        clearTimeout(timer);
        timer = setTimeout(save, SAVE_AFTER_MS);
      };
      box.onblur = () => { save(); tally(); };
      return card;
    }

    /** What the recipe makes of a caption: its stages in a few epochs, opened below the card. */
    function makeReading(id, text) {
      const element = h("div.reading", { hidden: true, role: "region", "aria-label": "What the model reads", "aria-live": "polite" });
      const button = h("button.link", { type: "button", ariaExpanded: "false", onclick: toggle }, "What the model reads");

      function toggle() {
        element.hidden = !element.hidden;
        button.ariaExpanded = String(!element.hidden);
        refresh();
      }
      async function refresh() {
        if (element.hidden) return;
        const answer = await server.read_as({ project: studio.project(), image: id, text: text() }).catch(() => ({ error: "The studio did not answer; try again in a moment." }));
        if (answer.error) return void element.replaceChildren(h("p.say.error", null, answer.error));
        element.replaceChildren(...answer.looks.map(oneLook), h("p.say", null, "Shuffle, wildcards and the like are set on the Recipe page, under Captions."));
      }
      return { element, button, refresh };
    }

    function oneLook({ epoch, step, warming, stages, tokens }, index) {
      const length = tokens.map(({ encoder, count, limit: most }) => {
        const words = encoder ? `${encoder.replaceAll("_", " ")}: ${count} of ${most} tokens` : `about ${count} of ${most} tokens, estimated: the base's tokenizer is not on this machine`;
        return h(count > most ? "span.over" : "span", null, words + (count > most ? ", the end is cut off" : ""));
      });
      const rows = stages.map(([title, text], number) => h(number && text === stages[number - 1][1] ? "li.same" : "li", null, h("b", null, title), h("span", null, number && text === stages[number - 1][1] ? "the same" : text || "no caption")));
      return h("details", { open: !index }, h("summary", null, h("b", null, `Epoch ${epoch}${warming ? `, step ${step}` : ""}`), " ", stages.at(-1)[1] || h("i", null, "no caption")),
        h("ol", null, rows), h("p.say", null, length.flatMap((part, number) => (number ? [" · ", part] : [part]))));
    }

    async function count(ids) {
      const some = ids.map((id) => cards.get(id)).filter(Boolean);
      if (!some.length) return;
      const answer = await server.count_tokens({ project: studio.project(), texts: some.map((card) => card.text()) }).catch(() => null);
      if (!answer || answer.error) return;
      const all = limit !== answer.limit;
      limit = answer.limit;
      some.forEach((card, index) => { card.tokens = answer.counts?.[index] ?? 0; });
      for (const card of all ? cards.values() : some) card.show();
      tally();
    }

    // The trigger word --------------------------------------------------------------------------------

    let triggerTimer = 0;
    async function saveTrigger() {
      clearTimeout(triggerTimer);
      if (!data || words(trigger.value) === words(data.trigger) && trigger.value.trim() === data.trigger) return void (triggerState.textContent = "");
      triggerState.textContent = "Saving…";
      const project = loadedFor;
      const answer = await ask("set_trigger", { trigger: trigger.value });
      if (project !== loadedFor || !data) return;
      triggerState.textContent = answer ? "Saved" : "Not saved";
      triggerState.className = `saved ${answer ? "good" : "bad"}`;
      if (!answer) return;
      data.trigger = answer.trigger;
      showAbout(answer);
      for (const card of cards.values()) card.show();
      tally();
      studio.refreshBadges?.();
    }
    trigger.oninput = () => { clearTimeout(triggerTimer); triggerTimer = setTimeout(saveTrigger, 800); };
    trigger.onchange = saveTrigger;
    find.oninput = () => { search = find.value.trim(); tally(); };

    // Bulk changes ------------------------------------------------------------------------------------

    function choose(kind, open) {
      bulk.choose(kind);
      if (open) {
        bulk.element.open = true;
        bulk.element.scrollIntoView({ block: "nearest" });
      }
    }

    function makeBulk() {
      let kind = "replace";
      let proposed = null;
      let timer = 0;
      let asked = 0;
      const field = (label, name, hint = "") => {
        const input = h("input", { type: "text", name, placeholder: hint, autocomplete: "off", oninput: later });
        return { input, element: h("label", null, label, input) };
      };
      const box = (label, name, checked) => {
        const input = h("input", { type: "checkbox", name, checked, onchange: later });
        return { input, element: h("label", null, input, label) };
      };
      const fields = {
        find: field("Find", "find"), replace: field("Replace with", "replace", "nothing: it is removed"),
        prefix: field("Text to put before", "prefix", "for example: photo of zwx cat,"), suffix: field("Text to put after", "suffix", "for example: , outdoors"),
      };
      const options = { whole_words: box("Whole words", "whole_words", true), ignore_case: box("Ignore capitals", "ignore_case", true), regex: box("Regular expression", "regex", false) };
      const kinds = h("div.chips", { role: "group", "aria-label": "Kind of change" });
      const inputs = h("div.inputs");
      const optionRow = h("div.options");
      const result = h("div", { "aria-live": "polite" });
      const undo = h("button.btn.quiet", { type: "button", hidden: true, onclick: takeBack });
      const details = h("details.card", null, h("summary", null, "Change many captions at once"), h("div.bulk", null, kinds, inputs, optionRow, result, undo));

      const message = () => {
        if (kind === "replace") return { kind, find: fields.find.input.value, replace: fields.replace.input.value, ...Object.fromEntries(Object.entries(options).map(([name, { input }]) => [name, input.checked])) };
        return kind === "trigger" ? { kind } : { kind, text: fields[kind].input.value };
      };
      const ready = () => kind === "trigger" || Boolean(fields[kind === "replace" ? "find" : kind].input.value.trim());

      function show() {
        kinds.replaceChildren(...Object.entries(BULK).map(([name, label]) => h("button.chip", { type: "button", "aria-pressed": String(name === kind), onclick: () => pick(name) }, label)));
        const wanted = kind === "replace" ? ["find", "replace"] : kind === "trigger" ? [] : [kind];
        inputs.replaceChildren(...wanted.map((name) => fields[name].element));
        optionRow.replaceChildren(...(kind === "replace" ? Object.values(options).map((option) => option.element) : []));
      }
      function pick(name) {
        kind = name;
        show();
        proposed = null;
        result.replaceChildren();
        if (ready()) preview(message());
      }
      function later() {
        clearTimeout(timer);
        timer = setTimeout(() => (ready() ? preview(message()) : result.replaceChildren()), 350);
      }
      async function preview(wanted) {
        const mine = asked += 1;
        await flushAll();
        const answer = await server.preview({ project: studio.project(), ...wanted }).catch(() => ({ error: "The studio did not answer; try again in a moment." }));
        if (mine !== asked) return;
        if (answer.error) return void result.replaceChildren(h("p.say.error", { role: "alert" }, answer.error));
        proposed = answer.count ? wanted : null;
        if (!answer.count) return void result.replaceChildren(h("p.say", null, "No caption changes."));
        const rows = answer.changes.map(({ name, before, after }) => {
          const [head, gone, come, tail] = difference(before, after);
          return h("li", null, h("small", null, name), head, gone ? h("del", null, gone) : null, come ? h("ins", null, come) : null, tail);
        });
        const many = `${answer.count} caption${answer.count === 1 ? "" : "s"}`;
        const rest = answer.count - rows.length;
        result.replaceChildren(h("p", null, h("b", null, `${many} ${answer.count === 1 ? "changes" : "change"}`), ` · ${answer.label}`),
          h("ul.diffs", null, rows, rest > 0 ? h("li.muted", null, `… and ${rest} more`) : null),
          h("div.buttons", { style: "margin-top: 10px" }, h("button.btn.primary", { type: "button", onclick: apply }, `Change ${many}`)));
      }
      async function apply() {
        if (!proposed) return;
        const wanted = proposed;
        proposed = null;
        await flushAll();
        const answer = await ask("apply_change", wanted);
        if (!answer) return;
        result.replaceChildren(h("p.say", null, `Done: ${answer.label} in ${answer.count} caption${answer.count === 1 ? "" : "s"}.`));
        studio.refreshBadges?.();
        await load();
      }
      async function takeBack() {
        await flushAll();
        const answer = await ask("undo");
        if (!answer) return;
        const kept = answer.kept ? ` ${answer.kept} that were edited since stay as they are.` : "";
        studio.toast(`Undone: ${answer.label} (${answer.count} captions).${kept}`, "good");
        result.replaceChildren();
        studio.refreshBadges?.();
        await load();
      }
      show();
      return {
        element: details, choose: pick,
        propose: (wanted) => { details.open = true; details.scrollIntoView({ block: "nearest" }); preview(wanted); },
        undoable: (label) => {
          undo.hidden = !label;
          undo.textContent = `Undo: ${label}`;
        },
      };
    }

    /** Bulk changes work on what is on disk: what was just typed has to be there first. */
    async function flushAll() {
      if (page.contains(document.activeElement) && document.activeElement.tagName === "TEXTAREA") document.activeElement.blur();
      for (let wait = 0; wait < 30 && [...page.querySelectorAll(".saved")].some((state) => /^(Saving|…)/.test(state.textContent)); wait += 1) {
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }

    const visit = () => {
      if (studio.project() !== loadedFor) {
        for (const card of cards.values()) card.flush();
        data = null;
        [filter, search, find.value, trigger.value, triggerState.textContent] = ["all", "", "", "", ""];
        cards.clear();
        list.replaceChildren();
      }
      if (studio.step() === "captions") load();
    };
    studio.on("step", visit);
    studio.on("project", visit);
    addEventListener("pagehide", () => { for (const card of cards.values()) card.flush(); });
    visit();
  };
})();
