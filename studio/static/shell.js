// window.studio: where we are, how to go elsewhere, how to ask the server, and a few ways to say things.
// Everything that pages share in the browser; loaded before every other script of ours.
(() => {
  "use strict";
  if (window.studio) return;

  const STEPS = ["photos", "captions", "recipe", "train", "results"];
  const LABELS = { photos: "Photos", captions: "Captions", recipe: "Recipe", train: "Train", results: "Results" };
  const place = { project: "", step: "photos", projects: [], password: false };
  const listeners = {};
  let choose = () => {};
  let booted = false;
  let early = ""; // the step that was clicked before that
  let wanted = ""; // the project that was picked last, until it is open

  // Panels are built when Gradio gets to them: one that comes late still hears where we are.
  const REMEMBERED = ["projects", "project", "step", "live"];
  const last = new Map();
  function on(event, listener) {
    (listeners[event] ||= []).push(listener);
    if (last.has(event)) queueMicrotask(() => listener(last.get(event)));
  }
  function emit(event, detail) {
    if (REMEMBERED.includes(event)) last.set(event, detail);
    for (const listener of listeners[event] || []) listener(detail);
  }

  // Making elements -----------------------------------------------------------------------------

  /** h("button.primary", {onclick}, "text", child…): an element; strings become text, never markup. */
  function h(tag, properties, ...children) {
    const [name, ...classes] = tag.split(".");
    const element = document.createElement(name || "div");
    if (classes.length) element.className = classes.join(" ");
    for (const [key, value] of Object.entries(properties || {})) {
      if (value === undefined || value === null) continue;
      if (key.startsWith("on") || key in element && !["list", "form"].includes(key)) element[key] = value;
      else if (value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  const ICONS = {
    check: "M5 12.5l4.2 4.2L19 7",
    alert: "M12 3.5a8.5 8.5 0 100 17 8.5 8.5 0 000-17zM12 8v4.5M12 15.9v.1",
    bang: "M12 6v7.5M12 17.6v.1",
    stop: "M7 7h10v10H7z",
    play: "M8 5.5v13l11-6.5z",
    save: "M12 4v10m0 0l-4-4m4 4l4-4M5 19h14",
    image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.2v.1",
    sun: "M12 8a4 4 0 100 8 4 4 0 000-8zM12 2v2M12 20v2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M2 12h2M20 12h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4",
    pen: "M5 19l1-4L15.5 5.5l3 3L9 18zM13.5 7.5l3 3",
    plus: "M12 5v14M5 12h14",
    close: "M6 6l12 12M18 6L6 18",
    star: "M12 4l2.5 5.1 5.6.8-4 4 .9 5.6-5-2.7-5 2.7.9-5.6-4-4 5.6-.8z",
    up: "M5 15l7-7 7 7",
    down: "M5 9l7 7 7-7",
    pause: "M8.5 6v12M15.5 6v12",
    left: "M15 5l-7 7 7 7",
    right: "M9 5l7 7-7 7",
    copy: "M9 9h10v10H9zM5 15V5h10",
    out: "M14 5h5v14h-5M4 12h10m0 0l-4-4m4 4l-4 4",
  };
  function icon(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("class", `icon icon-${name}`);
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", ICONS[name]);
    svg.append(path);
    return svg;
  }

  // Numbers as people read them -------------------------------------------------------------------

  const format = {
    /** 1.0e-4 for small numbers, 0.123 else. */
    number(value, digits = 3) {
      if (value === null || value === undefined || !Number.isFinite(value)) return "–";
      if (value === 0) return "0";
      if (Math.abs(value) < 0.001) return value.toExponential(1);
      return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(digits);
    },
    count: (value) => (value ?? 0).toLocaleString("en-US"),
    seconds(value) {
      if (value === null || value === undefined || !Number.isFinite(value)) return "–";
      const seconds = Math.max(0, Math.round(value));
      if (seconds < 90) return `${seconds} s`;
      if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
      const minutes = Math.round(seconds / 60);
      return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
    },
    gib: (value) => (value === null || value === undefined ? "–" : value < 10 ? value.toFixed(1) : value.toFixed(0)),
    bytes(value) {
      for (const unit of ["B", "kB", "MB", "GB"]) {
        if (value < 1000 || unit === "GB") return `${value < 10 && unit !== "B" ? value.toFixed(1) : Math.round(value)} ${unit}`;
        value /= 1000;
      }
    },
  };

  // Asking the server -----------------------------------------------------------------------------

  class Unreachable extends Error {}

  async function request(url, options) {
    let response;
    try {
      response = await fetch(url, { signal: AbortSignal.timeout(8000), ...options });
    } catch (error) {
      throw new Unreachable(String(error));
    }
    if (response.status === 401 || response.redirected && new URL(response.url).pathname.startsWith("/login")) {
      location.reload(); // the session ended: the guard answers the reload with the login page
      throw new Unreachable("not logged in");
    }
    if (!response.ok) {
      const body = await response.json().catch(() => ({}));
      throw new Error(body.error || body.detail || `The studio answered ${response.status}.`);
    }
    return response;
  }
  const fetchJSON = async (url, options) => (await request(url, options)).json();
  const post = async (url, body) => (await request(url, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}),
  })).json().catch(() => ({}));

  /**
   * Pictures, captions and findings of the open project, with its id. Null where there is none, where they
   * were not to be had (`complain` gets the sentence), and where another project was opened meanwhile.
   */
  async function dataset(complain) {
    const { project } = place;
    if (!project) return null;
    try {
      const answer = await fetchJSON(`/studio/dataset/${project}`);
      return project === place.project ? { project, ...answer } : null;
    } catch (error) {
      if (project === place.project) complain(h("div.notice.bad", { role: "alert" }, String(error.message ?? error)));
      return null;
    }
  }

  /** Call a function of the server that a panel was given; toasts what went wrong; null then. */
  async function call(promise) {
    const answer = await Promise.resolve(promise).catch(() => null);
    if (!answer) { // Gradio keeps what went wrong to itself; an answer is an object always
      toast("The studio did not answer. It may be restarting; try again in a moment.", "warn");
      return null;
    }
    if (answer.error) {
      toast(answer.error, "bad");
      return null;
    }
    return answer;
  }

  // Saying things ---------------------------------------------------------------------------------

  let tray;
  /** A short message in the corner; kind: "good", "info", "warn" or "bad" (which stays until closed). */
  function toast(text, kind = "info") {
    if (!tray) document.body.append(tray = h("div.toasts", { role: "status", "aria-live": "polite" }));
    [...tray.children].find((note) => note.textContent === text)?.remove(); // once is enough
    const close = h("button.icon-button", { "aria-label": "Close", onclick: () => note.remove() }, icon("close"));
    const note = h(`div.toast.${kind}`, null, icon(kind === "good" ? "check" : "alert"), h("span", null, text), close);
    tray.append(note);
    while (tray.children.length > 4) tray.firstChild.remove();
    if (kind !== "bad") setTimeout(() => note.remove(), 6000);
  }

  /** Put text on the clipboard; true if that worked. Plain http gets only the old way of doing it. */
  async function copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
    const box = h("textarea", { value: text, style: "position:fixed;opacity:0" });
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }

  // Going places ----------------------------------------------------------------------------------

  function keepAddress() {
    const query = new URLSearchParams(location.search);
    query.delete("project");
    query.delete("step"); // both anew, so that they always stand in this order
    if (place.project) query.set("project", place.project);
    query.set("step", place.step);
    history.replaceState(null, "", `?${query}`);
  }

  function go(step) {
    if (!STEPS.includes(step)) return;
    if (!booted) { // nothing can be opened yet: kept until it can, and shown in the stepper
      emit("step", place.step = early = step);
      return;
    }
    const changed = step !== place.step;
    place.step = step;
    keepAddress();
    // Gradio's own tab bar is hidden but alive: a click on it shows the page.
    const button = document.querySelector(`#tab-${step}-button`);
    if (button && button.getAttribute("aria-selected") !== "true") button.click();
    if (changed) {
      window.scrollTo({ top: 0 });
      emit("step", step);
    }
  }

  /** Open another project, at the step we are at unless one is named. */
  function open(project, step) {
    if (step) go(step);
    if (project !== place.project || wanted) choose(wanted = project, place.step);
  }

  /** The project that is open has another name now. */
  function renamed(name) {
    place.projects = place.projects.map((project) => (project.id === place.project ? { ...project, name } : project));
    emit("projects", place.projects);
  }

  function boot(props, watch, chooser) {
    choose = chooser;
    const arrive = () => {
      const news = JSON.parse(props.value || "{}");
      if (news.project === undefined || wanted && news.project !== wanted) return; // another was picked since
      wanted = "";
      const moved = news.project !== place.project;
      Object.assign(place, { project: news.project, projects: news.projects, password: news.password });
      document.querySelector("#studio-root").dataset.project = place.project;
      document.body.classList.toggle("no-project", !place.project);
      if (!booted) {
        booted = true;
        place.step = "";
        go(place.project ? early || news.step : "photos");
        document.body.classList.add("booted");
        document.querySelector("#loading")?.remove();
      }
      keepAddress();
      emit("projects", place.projects);
      if (moved) emit("project", place.project);
    };
    watch("value", arrive);
    arrive();
  }

  // Light and dark --------------------------------------------------------------------------------

  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  function applyTheme() {
    const wanted = localStorage.getItem("studio-theme");
    const named = new URLSearchParams(location.search).get("__theme");
    const dark = named ? named === "dark" : wanted ? wanted === "dark" : systemDark.matches;
    document.body.classList.toggle("dark", dark);
    emit("theme", dark);
  }
  function toggleTheme() {
    const dark = !document.body.classList.contains("dark");
    if (dark === systemDark.matches) localStorage.removeItem("studio-theme");
    else localStorage.setItem("studio-theme", dark ? "dark" : "light");
    const query = new URLSearchParams(location.search);
    query.delete("__theme");
    history.replaceState(null, "", `?${query}`);
    applyTheme();
  }
  systemDark.addEventListener("change", applyTheme);
  applyTheme();

  window.studio = {
    STEPS, LABELS, panels: {}, format, h, icon, on, emit, boot, go, open, renamed, toast, call, fetchJSON, post, dataset, Unreachable,
    toggleTheme, copy,
    project: () => place.project,
    step: () => place.step,
    projects: () => place.projects,
    hasPassword: () => place.password,
  };
})();
