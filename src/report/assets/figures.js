"use strict";
// Figures from plain data (src/report/charts.py): one chart of several, by its selects. Points of
// hidden runs are left out, a click opens the runs behind a point, and what is shown can be saved.

const figures = (() => {
  const GRAY = "#8a8f98";
  const SEQUENTIAL = "Viridis";
  const FOUND = [[0, "#c8511b"], [0.5, "#d9d3c4"], [1, "#2f7fd1"]];
  const all = [];

  const color = (slot) => (slot < 0 ? GRAY : charts.COLORS[slot % charts.COLORS.length]);
  const runsOf = (point) => point[5] ?? [];

  /** The points of a series that are shown; of alternatives at one x the first. */
  function shownPoints(series) {
    const taken = new Set();
    return series.points.filter((point) => {
      if (!filters.shows(runsOf(point)) || (series.alternatives && taken.has(point[0]))) return false;
      taken.add(point[0]);
      return true;
    });
  }

  function isShown(choice) {
    if (!filters.shows(choice.runs)) return false;
    if (choice.kind === "heatmap") return true;
    const measured = choice.series.some((series) => series.points.some((point) => runsOf(point).length));
    return !measured || choice.series.some((series) => shownPoints(series).some((point) => runsOf(point).length));
  }

  function axis(given) {
    const look = { title: { text: charts.plain(given.title), standoff: 8 }, zeroline: false, automargin: true };
    if (given.categories.length) {
      const places = given.categories.map((_, place) => place);
      return { ...look, tickvals: places, ticktext: given.categories.map(charts.plain), range: [-0.6, places.length - 0.4] };
    }
    if (!given.log) return { ...look, nticks: 7 };
    const ticks = given.ticks.length ? { tickvals: given.ticks.map(([at]) => at), ticktext: given.ticks.map(([, text]) => text) } : { dtick: "D2", tickformat: "~g" };
    return { ...look, type: "log", ...ticks };
  }

  function trace(series, place, count, chart) {
    const points = shownPoints(series);
    // Dots of several series at one category stand side by side.
    const shift = series.mode === "dots" ? (place - (count - 1) / 2) * Math.min(0.16, 0.7 / count) : 0;
    const x = points.map((point) => point[0] + shift);
    const y = points.map((point) => point[1]);
    const known = points.some((point) => (point[2] ?? null) !== null);
    const error = known && {
      type: "data", symmetric: false, thickness: 1.3, width: 3,
      array: points.map((point) => (point[3] === null ? 0 : point[3] - point[1])),
      arrayminus: points.map((point) => (point[2] === null ? 0 : point[1] - point[2])),
    };
    const common = {
      name: charts.plain(series.name),
      customdata: points.map(runsOf),
      text: points.map((point) => hover(series, point, chart)),
      hovertemplate: "%{text}<extra></extra>",
    };
    if (series.mode === "bars") {
      const look = { type: "bar", marker: { color: color(series.slot) }, textposition: "none" };
      return chart.horizontal ? { ...common, ...look, orientation: "h", x: y, y: x } : { ...common, ...look, x, y };
    }
    return {
      ...common, x, y,
      mode: series.mode === "dots" ? "markers" : "lines+markers",
      line: { color: color(series.slot), dash: series.dash, width: series.slot < 0 ? 1.6 : 2 },
      marker: { color: color(series.slot), size: series.mode === "dots" ? 10 : 7 },
      ...(error ? { error_y: error } : {}),
    };
  }

  function hover(series, point, chart) {
    const number = (value) => (value === null || value === undefined ? "?" : String(Number(value.toPrecision(4))));
    const at = chart.x.categories.length ? chart.x.categories[point[0]] : `${point[0].toLocaleString("en")} ${chart.x.title}`;
    const interval = (point[2] ?? null) !== null ? ` (${number(point[2])} to ${number(point[3])})` : "";
    return [`${series.name}: ${number(point[1])}${interval}`, point[4] || at].map(charts.plain).join("<br>");
  }

  function chartOf(chart) {
    const series = chart.series.filter((one) => shownPoints(one).length);
    const [x, y] = [axis(chart.x), axis(chart.y)];
    const muted = charts.color("--muted");
    const vertical = chart.marks.map(([at]) => ({ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: muted, width: 1, dash: "dot" } }));
    const end = chart.horizontal ? { x0: chart.level, x1: chart.level, y0: 0, y1: 1, yref: "paper" } : { y0: chart.level, y1: chart.level, x0: 0, x1: 1, xref: "paper" };
    const level = chart.level === null ? [] : [{ type: "line", ...end, line: { color: muted, width: 1, dash: "dot" } }];
    const log = chart.x.log;
    return {
      data: series.map((one, place) => trace(one, place, series.length, chart)),
      layout: {
        margin: { l: 58, r: chart.x.categories.length && !chart.horizontal ? 30 : 12, t: chart.marks.length ? 20 : 8, b: 44 },
        showlegend: series.length > 1 || chart.series.length > 1,
        legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
        hovermode: "closest",
        xaxis: chart.horizontal ? { ...y, rangemode: "tozero" } : x,
        yaxis: chart.horizontal ? { ...x, range: [chart.x.categories.length - 0.4, -0.6], title: { text: "" } } : y,
        bargap: 0.35,
        shapes: [...vertical, ...level],
        annotations: chart.marks.map(([at, text]) => ({ x: log ? Math.log10(at) : at, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, text: charts.plain(text), font: { size: 11 } })),
      },
      click: (point) => point.customdata ?? [],
    };
  }

  function heatmapOf(chart) {
    const every = Math.ceil(chart.columns.length / 6);
    const places = chart.columns.map((_, place) => place);
    const named = chart.columns.length > 8 ? places.filter((place) => place % every === 0) : places;
    const rows = chart.rows.map((_, place) => place);
    const stride = Math.ceil(rows.length / 9);
    const z = chart.log ? chart.values.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null))) : chart.values;
    const known = z.flat().filter((value) => value !== null);
    const low = Math.min(...known);
    const high = Math.max(...known);
    const ticks = chart.log ? [0, 0.25, 0.5, 0.75, 1].map((share) => low + share * (high - low)) : null;
    return {
      data: known.length === 0 ? [] : [{
        type: "heatmap", x: places, y: rows, z,
        colorscale: chart.limits ? FOUND : SEQUENTIAL,
        ...(chart.limits ? { zmin: chart.limits[0], zmax: chart.limits[1] } : {}),
        colorbar: { thickness: 10, outlinewidth: 0, len: 1, title: { text: charts.plain(chart.value_title), side: "right" }, ...(ticks ? { tickvals: ticks, ticktext: ticks.map((tick) => (10 ** tick).toPrecision(2)) } : {}) },
        text: chart.values.map((row) => row.map((value) => (value === null ? "" : String(Number(value.toPrecision(3)))))),
        ...(chart.text ? { texttemplate: "%{text}" } : {}),
        customdata: chart.rows.map((row) => chart.columns.map((column) => charts.plain(`${chart.y_title} ${row}, ${chart.x_title} ${column}`))),
        hovertemplate: "%{text}<br>%{customdata}<extra></extra>",
        xgap: chart.text ? 2 : 0, ygap: chart.text ? 2 : 0, hoverongaps: false,
      }],
      layout: {
        margin: { l: 48, r: 8, t: 8, b: 44 },
        xaxis: { title: { text: charts.plain(chart.x_title) }, tickvals: named, ticktext: named.map((place) => charts.plain(chart.columns[place])), showgrid: false, zeroline: false, tickangle: 0 },
        yaxis: { title: { text: charts.plain(chart.y_title) }, autorange: "reversed", tickvals: rows.filter((row) => row % stride === 0), ticktext: rows.filter((row) => row % stride === 0).map((row) => charts.plain(chart.rows[row])), showgrid: false, zeroline: false },
      },
      click: () => chart.runs,
    };
  }

  function csv(chart) {
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      const guarded = typeof value === "string" && /^[=+\-@]/.test(text) ? `'${text}` : text; // no formula for a spreadsheet
      return /[",\n]/.test(guarded) ? `"${guarded.replace(/"/g, '""')}"` : guarded;
    };
    const rows = chart.kind === "heatmap"
      ? [[chart.y_title, chart.x_title, chart.value_title], ...chart.rows.flatMap((row, i) => chart.columns.map((column, j) => [row, column, chart.values[i][j]]))]
      : [["series", chart.x.title, chart.y.title, "low", "high", "note"], ...chart.series.flatMap((series) => shownPoints(series).map((point) => [series.name, chart.x.categories[point[0]] ?? point[0], point[1], point[2], point[3], point[4]]))];
    return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }

  function download(name, href) {
    const link = drawer.el("a", { href, download: name });
    document.body.append(link);
    link.click();
    link.remove();
  }

  async function save(kind, figure) {
    const chart = figure.current();
    if (!chart) return;
    const file = `${figure.data.name}.${kind}`;
    if (kind === "csv") {
      const url = URL.createObjectURL(new Blob([csv(chart)], { type: "text/csv" }));
      download(file, url);
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      return;
    }
    const built = build(chart);
    const picture = { data: built.data, layout: charts.onPaper({ ...built.layout, title: { text: charts.plain(figure.data.title), x: 0.02 }, margin: { ...built.layout.margin, t: 60 } }) };
    download(file, await Plotly.toImage(picture, { format: kind, width: 760, height: 460, scale: kind === "png" ? 2 : 1 }));
  }

  const build = (chart) => (chart.kind === "heatmap" ? heatmapOf(chart) : chartOf(chart));

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
      charts.add(element, () => {
        const chart = this.current();
        return chart ? build(chart) : { data: [], layout: {}, empty: "no run behind this passes the filters" };
      });
    }

    /** The options that are left at each select, given those before it. */
    fill() {
      let left = this.data.choices.filter(isShown);
      this.selects.forEach((select, level) => {
        const labels = [...new Set(left.map((choice) => choice.labels[level]))];
        const chosen = labels.includes(this.wanted[level]) ? this.wanted[level] : labels[0];
        select.replaceChildren(...labels.map((label) => new Option(label, label, false, label === chosen)));
        select.disabled = labels.length < 2;
        left = left.filter((choice) => choice.labels[level] === chosen);
      });
      this.left = left;
    }

    current() {
      return this.left[0];
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
