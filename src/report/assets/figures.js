"use strict";
// Figures as src/report/to_plotly.py has drawn them: one chart of several, by its selects. Points
// of hidden runs are left out, a click opens the runs behind a point, and what is shown can be saved.

const figures = (() => {
  const FREE_ROWS = 3; // of the legend, that a chart has room for
  const [LEGEND_ROW, LETTER] = [19, 6.6]; // pixels
  const all = [];

  /** A trace with the points that are shown; of alternatives at one x the first. */
  function shown(trace) {
    if (!trace.customdata) return trace;
    const taken = new Set();
    const kept = [...trace.customdata.keys()].filter((index) => {
      if (!filters.shows(trace.customdata[index]) || (trace.meta.alternatives && taken.has(trace.x[index]))) return false;
      taken.add(trace.x[index]);
      return true;
    });
    const pick = (values) => values && kept.map((index) => values[index]);
    const { error_y: bars, meta } = trace;
    return {
      ...trace,
      ...Object.fromEntries(["x", "y", "text", "customdata"].map((key) => [key, pick(trace[key])])),
      ...(bars && { error_y: { ...bars, array: pick(bars.array), arrayminus: pick(bars.arrayminus) } }),
      meta: { ...meta, lines: pick(meta.lines) },
    };
  }

  const isEmpty = (trace) => trace.type !== "heatmap" && trace.x.length === 0;

  const drawn = (chart) => ({ ...chart, data: chart.data.map(shown).filter((trace) => !isEmpty(trace)) });

  /** The lines of one trace; names in them are quoted already. */
  function lines({ meta, x, y, text }) {
    if (meta.rows) return meta.rows.flatMap((row, i) => meta.columns.map((column, j) => `${row},${column},${text[i][j] ?? ""}`));
    return meta.lines ?? x.map((at, index) => `${meta.name},${at},${y[index] ?? ""},,,`);
  }

  const csv = (chart) => [chart.csv, ...drawn(chart).data.flatMap(lines)].join("\n") + "\n";

  function download(name, href) {
    const link = drawer.el("a", { href, download: name });
    document.body.append(link);
    link.click();
    link.remove();
  }

  async function save(kind, figure) {
    const chart = figure.left[0];
    if (!chart) return;
    const file = `${figure.data.name}.${kind}`;
    if (kind === "csv") {
      const url = URL.createObjectURL(new Blob([csv(chart)], { type: "text/csv" }));
      download(file, url);
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      return;
    }
    const { data, layout } = drawn(chart);
    const titled = { ...charts.stamped(layout, figure.element), template: charts.template, title: { text: figure.data.title, x: 0.02 }, margin: { ...layout.margin, t: 60 } };
    download(file, await Plotly.toImage({ data, layout: titled }, { format: kind, width: 760, height: 460, scale: kind === "png" ? 2 : 1 }));
  }

  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  class Figure {
    constructor(element) {
      this.element = element;
      this.data = charts.json(`data-${element.dataset.chart}`);
      const root = element.closest(".choosing");
      this.selects = [...root.querySelectorAll("[data-choice]")];
      this.listeners = [];
      this.key = `show-${this.data.name}`;
      this.restore();
      this.selects.forEach((select, level) => select.addEventListener("change", () => {
        this.wanted = [...this.wanted.slice(0, level), select.value, ...this.wanted.slice(level + 1)];
        state.set(this.key, same(this.wanted, this.data.choices[0].labels) ? "" : JSON.stringify(this.wanted));
        this.refresh();
      }));
      for (const button of root.querySelectorAll("[data-save]")) {
        button.addEventListener("click", () => save(button.dataset.save, this));
      }
      this.fill();
      charts.add(element, () => (this.left.length ? this.sized(drawn(this.left[0])) : { data: [], layout: {}, empty: "no run behind this passes the filters" }));
    }

    /** The chart, after the element was made high enough for its legend. */
    sized(chart) {
      const longest = Math.max(0, ...chart.data.map((trace) => trace.name?.length ?? 0));
      const columns = Math.max(1, Math.floor(this.element.offsetWidth / (LETTER * longest + 60)));
      const rows = Math.ceil(chart.data.length / columns);
      this.element.style.height = rows > FREE_ROWS ? `calc(var(--chart) + ${LEGEND_ROW * (rows - FREE_ROWS)}px)` : "";
      return chart;
    }

    /** The labels of the address; they are kept while filters do not let them be shown. */
    restore() {
      const labels = this.data.choices.map((choice) => choice.labels);
      this.wanted = labels.find((one) => JSON.stringify(one) === state.get(this.key)) ?? labels[0];
    }

    /** The options that are left at each select, given those before it. */
    fill() {
      let left = this.data.choices.filter((choice) => filters.shows(choice.runs));
      this.selects.forEach((select, level) => {
        const labels = [...new Set(left.map((choice) => choice.labels[level]))];
        const chosen = labels.includes(this.wanted[level]) ? this.wanted[level] : labels[0];
        select.replaceChildren(...labels.map((label) => new Option(label, label, false, label === chosen)));
        select.disabled = labels.length < 2;
        left = left.filter((choice) => choice.labels[level] === chosen);
      });
      this.left = left;
    }

    refresh() {
      this.fill();
      charts.redraw(this.element);
      for (const listener of this.listeners) listener();
    }
  }

  for (const element of document.querySelectorAll("[data-chart]")) all.push(new Figure(element));
  filters.onChange(() => { for (const figure of all) figure.refresh(); });
  state.onChange(() => {
    for (const figure of all) {
      figure.restore();
      figure.refresh();
    }
  });

  const named = (name) => all.find((figure) => figure.data.name === name);

  return {
    /** The labels of the chart that a figure shows; undefined where the filters leave none. */
    shown: (name) => named(name).left[0]?.labels,
    /** Called now, and whenever a figure shows another chart or other runs. */
    onShown(name, listener) {
      named(name).listeners.push(listener);
      listener();
    },
  };
})();
