"use strict";
// Figures as src/report/to_plotly.py has drawn them: one chart of several, by its selects. Points
// of hidden runs are left out, a click opens the runs behind a point, and what is shown can be saved.

const figures = (() => {
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
    const titled = { ...layout, template: charts.template, title: { text: figure.data.title, x: 0.02 }, margin: { ...layout.margin, t: 60 } };
    download(file, await Plotly.toImage({ data, layout: titled }, { format: kind, width: 760, height: 460, scale: kind === "png" ? 2 : 1 }));
  }

  class Figure {
    constructor(element) {
      this.element = element;
      this.data = charts.json(`data-${element.dataset.chart}`);
      const root = element.closest("figure");
      this.selects = [...root.querySelectorAll("[data-choice]")];
      this.wanted = [...this.data.choices[0].labels]; // kept while filters do not let it be shown
      this.selects.forEach((select, level) => select.addEventListener("change", () => {
        this.wanted[level] = select.value;
        this.refresh();
      }));
      for (const button of root.querySelectorAll("[data-save]")) {
        button.addEventListener("click", () => save(button.dataset.save, this));
      }
      this.fill();
      charts.add(element, () => (this.left.length ? drawn(this.left[0]) : { data: [], layout: {}, empty: "no run behind this passes the filters" }));
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
    }
  }

  for (const element of document.querySelectorAll("[data-chart]")) all.push(new Figure(element));
  filters.onChange(() => { for (const figure of all) figure.refresh(); });

  return {
    state: () => Object.fromEntries(all.map((figure) => [figure.data.name, figure.wanted])),
    restore(state) {
      for (const figure of all) {
        if (state[figure.data.name]) figure.wanted = [...state[figure.data.name]];
        figure.refresh();
      }
    },
  };
})();
