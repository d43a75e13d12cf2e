"use strict";
// Training curves of the ticked runs. Colour tells runs apart, or the parts of a loss when one run
// is shown; the dash tells the parts apart when there are several.
{
  const { COLORS } = charts;
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const runs = charts.json("curve-data");
  const boxes = [...document.querySelectorAll("[data-run]")];
  const elements = [...document.querySelectorAll("[data-curve]")];
  const smoothing = document.getElementById("smoothing");
  const logLoss = document.getElementById("log-loss");
  const slots = new Map(); // run -> place in COLORS, kept while the run is ticked

  const isTotal = (key) => key === "loss/total";
  const isPart = (key) => key.startsWith("loss/") && !isTotal(key);
  const PLOTS = {
    total: { has: isTotal, name: () => "" },
    parts: { has: isPart, name: (key) => key.slice("loss/".length) },
    lr: { has: (key) => key === "lr", name: () => "", exact: true }, // a schedule has no noise to smooth
    grad_norm: { has: (key) => key === "grad_norm", name: () => "" },
  };

  function assignColors() {
    for (const box of boxes) {
      const run = Number(box.dataset.run);
      if (!box.checked) slots.delete(run);
      else if (!slots.has(run)) slots.set(run, freeSlot());
      box.nextElementSibling.style.background = box.checked ? runColor(run) : "";
    }
  }

  function freeSlot() {
    const taken = new Set(slots.values());
    let slot = 0;
    while (taken.has(slot)) slot += 1;
    return slot;
  }

  const runColor = (run) => COLORS[slots.get(run) % COLORS.length];
  const passes = (box) => filters.shows([runs[Number(box.dataset.run)].run]);
  const shownRuns = () => boxes.filter((box) => box.checked && passes(box)).map((box) => Number(box.dataset.run));

  /** Exponential mean, corrected for its start; a gap stays a gap. */
  function smooth(values, weight) {
    let mean = 0;
    let mass = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      mass = weight * mass + (1 - weight);
      return mean / mass;
    });
  }

  /** The series of a run cut at its stages, with a gap between two of them. */
  function points(run, key, weight) {
    const x = [];
    const y = [];
    let start = 0;
    for (const [, count] of run.stages) {
      const end = start + count;
      x.push(...run.tokens.slice(start, end), run.tokens[end - 1]);
      y.push(...smooth(run.series[key].slice(start, end), weight), null);
      start = end;
    }
    return { x, y };
  }

  function traces(plot) {
    const shown = shownRuns();
    const keys = [...new Set(shown.flatMap((run) => Object.keys(runs[run].series).filter(plot.has)))].sort();
    const named = new Set(); // one legend entry a part, though every run has its line
    return shown.flatMap((run) => keys.filter((key) => key in runs[run].series).flatMap((key) => {
      const showlegend = !named.has(key);
      named.add(key);
      return lines(runs[run], key, plot.exact ? 0 : Number(smoothing.value), {
        name: charts.plain(plot.name(key)),
        meta: charts.plain(`${runs[run].name} ${plot.name(key)}`),
        showlegend,
        line: { width: 1.8, ...style(run, keys.indexOf(key), shown.length === 1 && keys.length > 1) },
      });
    }));
  }

  function style(run, part, byPart) {
    return byPart
      ? { color: COLORS[part % COLORS.length], dash: "solid" }
      : { color: runColor(run), dash: DASHES[part % DASHES.length] };
  }

  /** The curve of one series; when it is smoothed, the logged values faintly behind it. */
  function lines(run, key, weight, look) {
    const curve = {
      ...look,
      ...points(run, key, weight),
      // Few points: a stage of one step would be a line without length.
      mode: run.tokens.length <= 10 ? "lines+markers" : "lines",
      marker: { color: look.line.color },
      hovertemplate: "%{y:.4g} at %{x:,} tokens<extra>%{meta}</extra>",
    };
    curve.customdata = curve.x.map(() => [run.run]);
    const logged = { ...curve, ...points(run, key, 0), opacity: 0.25, hoverinfo: "skip", hovertemplate: null, showlegend: false };
    return weight > 0 ? [logged, curve] : [curve];
  }

  /** Where a stage of a shown run ends and another begins, each place once. */
  function boundaries() {
    const ends = new Map();
    for (const run of shownRuns().map((index) => runs[index])) {
      let count = 0;
      run.stages.slice(0, -1).forEach(([name, length], index) => {
        count += length;
        const end = run.tokens[count - 1];
        if (!ends.has(end)) ends.set(end, new Set());
        ends.get(end).add(`${name} | ${run.stages[index + 1][0]}`);
      });
    }
    return [...ends].map(([end, names]) => [end, [...names].join(", ")]);
  }

  function layout(name) {
    const ends = boundaries();
    const isLoss = name === "total" || name === "parts";
    return {
      margin: { l: 52, r: 10, t: 18, b: 38 },
      showlegend: name === "parts",
      legend: { orientation: "h", x: 0, y: -0.14, yanchor: "top" },
      hovermode: "closest",
      xaxis: { title: { text: name === "parts" ? "" : "tokens" }, rangemode: "tozero", zeroline: false, tickformat: "~s", nticks: 6 },
      yaxis: {
        zeroline: false, nticks: 6, exponentformat: "e",
        ...(isLoss && logLoss.checked ? { type: "log", dtick: "D2", tickformat: "~g" } : { type: "linear", rangemode: name === "lr" ? "tozero" : "normal" }),
      },
      shapes: ends.map(([x]) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: charts.color("--muted"), width: 1, dash: "dot" } })),
      annotations: ends.map(([x, text]) => ({ x, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, text: charts.plain(text), font: { size: 11 } })),
    };
  }

  function update() {
    const weight = Number(smoothing.value);
    document.getElementById("smoothing-value").value = weight > 0 ? weight.toFixed(2) : "off";
    assignColors();
    for (const element of elements) charts.redraw(element);
  }

  for (const element of elements) {
    const name = element.dataset.curve;
    charts.add(element, () => ({ data: traces(PLOTS[name]), layout: layout(name), click: (point) => point.customdata ?? [] }));
  }
  filters.onChange(() => {
    const passing = boxes.filter(passes);
    if (passing.length && !passing.some((box) => box.checked)) passing[0].checked = true;
    update();
  });
  for (const control of [...boxes, smoothing, logLoss]) control.addEventListener("input", update);
  update();
}
