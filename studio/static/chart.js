// studio.LossChart: the loss of a run, smoothed, that on held-out photos, the learning rate on a second axis and
// marks where checkpoints and samples were made. Drawn by BokehJS, which is served from the installed bokeh package.
(() => {
  "use strict";
  if (studio.LossChart) return;

  const MOST_POINTS = 3000; // beyond this the faint raw line is thinned; the smoothed one is not visibly changed
  let loading;

  function loadScript(src) {
    return new Promise((resolve, reject) => {
      const script = studio.h("script", { src });
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${src} could not be loaded`));
      document.head.append(script);
    });
  }
  function loadBokeh() {
    loading ||= (async () => {
      await loadScript("/studio/vendor/bokeh.min.js");
      await loadScript("/studio/vendor/bokeh-api.min.js");
      Bokeh.set_log_level("error");
    })();
    return loading;
  }

  /** Exponential mean run forwards and backwards, so that the curve does not lag behind. */
  function smooth(values, weight) {
    const out = new Float64Array(values.length);
    if (!values.length) return out;
    let mean = values[0];
    for (let i = 0; i < values.length; i += 1) out[i] = mean = weight * mean + (1 - weight) * values[i];
    for (let i = values.length - 1; i >= 0; i -= 1) out[i] = mean = weight * mean + (1 - weight) * out[i];
    return out;
  }

  function indices(length) {
    const stride = Math.max(1, Math.ceil(length / MOST_POINTS));
    const kept = [];
    for (let i = 0; i < length; i += stride) kept.push(i);
    if (length && kept.at(-1) !== length - 1) kept.push(length - 1);
    return kept;
  }

  /** The value below which `share` of the values lie. */
  function quantile(values, share) {
    const sorted = Float64Array.from(values).sort();
    return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  }

  const settings = { smoothing: 0.9, log: false, lr: true, ...JSON.parse(localStorage.getItem("studio-chart") || "{}") };
  const keep = () => localStorage.setItem("studio-chart", JSON.stringify(settings));

  class LossChart {
    constructor() {
      const { h } = studio;
      this.data = null;
      this.zoom = null; // [first, last] step that the user chose, or null to follow the run
      this.nearest = null;
      this.canvas = h("div.chart-canvas", { role: "img", "aria-label": "Loss by step" });
      this.readout = h("div.chart-readout.number", { "aria-hidden": "true" });
      this.reset = h("button.btn.small", { type: "button", hidden: true, onclick: () => this.unzoom() }, "Show all");
      const slider = h("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: String(settings.smoothing), "aria-label": "Smoothing" });
      slider.oninput = () => { settings.smoothing = Number(slider.value); keep(); this.draw(); };
      const toggle = (key, label) => {
        const box = h("input", { type: "checkbox", checked: settings[key] });
        box.onchange = () => { settings[key] = box.checked; keep(); this.build(); };
        return h("label.chart-check", null, box, label);
      };
      const key = (kind, text) => h("span.key", null, h(`i.${kind}`), text);
      this.element = h("section.card.chart", { "aria-label": "Loss chart" },
        h("div.card-head", null, h("h3", null, "Loss"), this.reset,
          h("label.chart-check", null, "Smoothing", slider), toggle("log", "Log scale"), toggle("lr", "Learning rate")),
        this.readout, this.canvas,
        h("div.chart-keys.muted", null, key("loss", "smoothed"), key("raw", "each step"), key("rate", "learning rate"),
          this.held = key("validation", "held-out photos"), key("checkpoint", "checkpoint"), key("sample", "samples drawn"),
          h("span.hint", null, "Drag to zoom, Ctrl + wheel to zoom in and out, double-click for all")));
      this.empty = h("div.chart-empty.muted", null, "The curve starts with the first step.");
      this.canvas.append(this.empty);
      studio.on("theme", () => this.build());
    }

    /** Show a run's data; called at every change. */
    update(data) {
      if (this.data?.run !== data.run) [this.zoom, this.reset.hidden] = [null, true];
      const count = `${data.run}/${data.attempt}/${data.series.step.length}/${data.series.step.at(-1)}/${data.checkpoints.length}/${data.samples.size}/${data.validation.length}`;
      this.data = data;
      if (count === this.drawn) return;
      this.drawn = count;
      if (!data.series.step.length) return void this.clear();
      if (this.figure) this.draw();
      else this.build();
    }

    clear() {
      this.figure = null;
      this.view?.remove?.();
      this.view = null;
      this.canvas.replaceChildren(this.empty);
      this.readout.textContent = "";
    }

    async build() {
      if (!this.data?.series.step.length) return;
      const ticket = this.ticket = Symbol("build");
      try {
        await loadBokeh();
      } catch (error) {
        this.empty.textContent = `The chart cannot be shown: ${error.message}; reload the page.`;
        return;
      }
      if (ticket !== this.ticket) return;
      const css = getComputedStyle(document.body);
      const colour = (name) => css.getPropertyValue(`--${name}`).trim();
      const font = { text_font: css.fontFamily || "sans-serif" };
      const axis = {
        axis_line_color: colour("line-strong"), major_tick_line_color: colour("line-strong"), minor_tick_line_color: null,
        major_label_text_color: colour("muted"), axis_label_text_color: colour("muted"), major_label_text_font_size: "12px",
        axis_label_text_font_size: "12px", axis_label_text_font_style: "normal", major_label_text_font: font.text_font, axis_label_text_font: font.text_font,
      };
      const source = () => new Bokeh.ColumnDataSource({ data: { x: [], y: [] } });
      this.sources = { raw: source(), loss: source(), rate: source(), validation: source(), checkpoint: source(), sample: source(), resume: source() };
      this.x = new Bokeh.Range1d({ start: 0, end: 1 });
      this.y = new Bokeh.Range1d({ start: 0, end: 1 });
      this.rate = new Bokeh.Range1d({ start: 0, end: 1 });
      const figure = this.figure = new Bokeh.Plotting.Figure({
        x_range: this.x, y_range: this.y, y_axis_type: settings.log ? "log" : "linear", height: 300, sizing_mode: "stretch_width",
        tools: [new Bokeh.BoxZoomTool({ dimensions: "width" }), new Bokeh.WheelZoomTool({ dimensions: "width", modifiers: { ctrl: true } })],
        toolbar_location: null, background_fill_color: null, border_fill_color: null, outline_line_color: null,
        min_border_left: 48, min_border_right: 8, lod_threshold: null, output_backend: "canvas",
      });
      figure.toolbar.active_drag = figure.toolbar.tools[0];
      figure.toolbar.active_scroll = figure.toolbar.tools[1];
      for (const one of [figure.xaxis, figure.yaxis]) Object.assign(one[0] ?? one, axis);
      figure.xgrid.grid_line_color = null;
      figure.ygrid.grid_line_color = colour("line");
      const { raw, loss, rate, validation, checkpoint, sample, resume } = this.sources;
      const at = { x: { field: "x" }, y: { field: "y" } };
      if (settings.lr) {
        figure.extra_y_ranges = { rate: this.rate };
        const right = new Bokeh.LinearAxis({ y_range_name: "rate", ...axis, formatter: new Bokeh.BasicTickFormatter({ precision: 1, use_scientific: true, power_limit_low: -2 }) });
        figure.add_layout(right, "right");
        figure.line({ ...at, source: rate, y_range_name: "rate", line_color: colour("chart-rate"), line_width: 1.5, line_dash: [5, 4], line_alpha: 0.9 });
      }
      figure.line({ ...at, source: raw, line_color: colour("accent"), line_width: 1, line_alpha: 0.28 });
      figure.line({ ...at, source: loss, line_color: colour("accent"), line_width: 2.4, line_join: "round" });
      figure.line({ ...at, source: validation, line_color: colour("chart-validation"), line_width: 2 });
      figure.scatter({ ...at, source: validation, marker: "diamond", size: 9, fill_color: colour("chart-validation"), line_color: colour("surface") });
      figure.scatter({ ...at, source: sample, marker: "circle", size: 9, fill_color: colour("surface"), line_color: colour("chart-sample"), line_width: 2 });
      figure.scatter({ ...at, source: checkpoint, marker: "square", size: 7, fill_color: colour("ink"), line_color: colour("surface") });
      figure.scatter({ ...at, source: resume, marker: "triangle", size: 11, fill_color: colour("warn"), line_color: colour("surface") });
      figure.on_event?.("rangesupdate", () => this.zoomed());
      figure.on_event?.("doubletap", () => this.unzoom());
      figure.on_event?.("mousemove", (_, event) => this.hover((event ?? _).x));
      figure.on_event?.("mouseleave", () => this.hover(null));
      this.view?.remove?.(); // of the figure before, in other colours or another scale
      this.view = null;
      const holder = studio.h("div");
      this.canvas.replaceChildren(holder);
      this.draw();
      this.view = await Bokeh.Plotting.show(figure, holder);
    }

    zoomed() {
      this.zoom = [Math.max(0, this.x.start), this.x.end];
      this.reset.hidden = false;
      this.fitHeight();
    }

    unzoom() {
      this.zoom = null;
      this.reset.hidden = true;
      this.draw();
    }

    /** Bring the sources up to date. A zoom that the user chose stays as it is. */
    draw() {
      if (!this.figure) return;
      const { series, validation, checkpoints, samples, resumes } = this.data;
      const { step, loss, lr } = series;
      this.smoothed = smooth(loss, settings.smoothing);
      const kept = indices(step.length);
      const pick = (column) => kept.map((i) => column[i]);
      const x = pick(step);
      this.sources.raw.data = { x, y: pick(loss) };
      this.sources.loss.data = { x, y: pick(this.smoothed) };
      this.sources.rate.data = { x, y: pick(lr) };
      this.sources.validation.data = { x: validation.map((one) => one.step), y: validation.map((one) => one.loss) };
      this.held.hidden = !validation.length;
      const onCurve = (steps) => ({ x: steps, y: steps.map((at) => this.smoothed[this.indexOf(at)]) });
      this.sources.checkpoint.data = onCurve(checkpoints.map((one) => one.step).filter((at) => at > 0));
      this.sources.sample.data = onCurve([...new Set([...samples.values()].map((one) => one.step))].filter((at) => at > 0));
      this.sources.resume.data = onCurve(resumes.filter((at) => at > 0));
      [this.x.start, this.x.end] = this.zoom ?? [0, Math.max(step.at(-1) * 1.015, 10)];
      this.rate.start = 0;
      this.rate.end = Math.max(...pick(lr), 1e-12) * 1.15;
      this.fitHeight();
      this.hover(null);
    }

    /** Fit the loss axis to what is in sight: the held-out photos, all of the smoothed curve, and the raw one but
     * its wildest 2 %. */
    fitHeight() {
      const { step, loss } = this.data.series;
      const [first, last] = this.zoom ?? [0, Infinity];
      const from = this.indexOf(first);
      const to = this.indexOf(Math.min(last, step.at(-1))) + 1;
      const raw = loss.slice(from, Math.max(to, from + 1)).filter(Number.isFinite);
      if (!raw.length) return;
      const curve = this.smoothed.subarray(from, Math.max(to, from + 1));
      const held = this.data.validation.filter((one) => one.step >= first && one.step <= last).map((one) => one.loss);
      let low = Math.min(quantile(raw, 0.01), ...held, ...indices(curve.length).map((i) => curve[i]));
      let high = Math.max(quantile(raw, 0.98), ...held, ...indices(curve.length).map((i) => curve[i]));
      if (settings.log) {
        low = Math.max(low, 1e-8);
        [this.y.start, this.y.end] = [low * 0.85, Math.max(high * 1.15, low * 1.5)];
        return;
      }
      const room = (high - low || Math.abs(high) || 1) * 0.08;
      [this.y.start, this.y.end] = [Math.max(0, low - room), high + room];
    }

    /** Index of the last point at or before a step. */
    indexOf(at) {
      const { step } = this.data.series;
      let [low, high] = [0, step.length - 1];
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (step[middle] <= at) low = middle; else high = middle - 1;
      }
      return low;
    }

    hover(at) {
      const { step, loss, lr } = this.data.series;
      const i = at === null ? step.length - 1 : this.indexOf(at);
      if (i < 0) return;
      const { format, h } = studio;
      const held = this.data.validation.findLast((one) => one.step <= step[i]);
      this.readout.replaceChildren(
        h("span", null, "step ", h("b", null, format.count(step[i]))),
        h("span", null, "loss ", h("b", null, format.number(this.smoothed[i])), ` (this step ${format.number(loss[i])})`),
        held ? h("span", null, "held-out photos ", h("b", null, format.number(held.loss)), ` (step ${format.count(held.step)})`) : "",
        h("span", null, "learning rate ", h("b", null, format.number(lr[i], 2))));
    }
  }

  studio.LossChart = LossChart;
  studio.smooth = smooth;
})();
