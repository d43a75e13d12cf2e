"use strict";
// Training curves of the ticked runs (src/report/panels/curves.py). Colour tells runs apart, or the
// parts of a loss when one run is shown; the dash tells the parts apart when there are several.
{
  const { curves, plots, colors, dashes, mark, note } = charts.json("curve-data");
  const boxes = [...document.querySelectorAll("[data-run]")];
  const elements = [...document.querySelectorAll("[data-curve]")];
  const smoothing = document.getElementById("smoothing");
  const logLoss = document.getElementById("log-loss");
  const slots = new Map(); // curve -> place in colors, kept while it is ticked

  function assignColors() {
    for (const box of boxes) {
      const curve = Number(box.dataset.run);
      if (!box.checked) slots.delete(curve);
      else if (!slots.has(curve)) slots.set(curve, freeSlot());
      box.nextElementSibling.style.background = box.checked ? colorOf(slots.get(curve)) : "";
    }
  }

  function freeSlot() {
    const taken = new Set(slots.values());
    let slot = 0;
    while (taken.has(slot)) slot += 1;
    return slot;
  }

  const colorOf = (slot) => colors[slot % colors.length];
  const passes = (box) => filters.shows([curves[Number(box.dataset.run)].run]);
  const shownCurves = () => boxes.filter((box) => box.checked && passes(box)).map((box) => Number(box.dataset.run));

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

  /** A series cut at the stages, with a gap between two of them. */
  function points(curve, key, weight) {
    const x = [];
    const y = [];
    let start = 0;
    for (const [, count] of curve.stages) {
      const end = start + count;
      x.push(...curve.tokens.slice(start, end), curve.tokens[end - 1]);
      y.push(...smooth(curve.series[key].slice(start, end), weight), null);
      start = end;
    }
    return { x, y };
  }

  function traces(plot) {
    const shown = shownCurves();
    const keys = Object.keys(plot.labels).filter((key) => shown.some((index) => key in curves[index].series));
    const byPart = shown.length === 1 && keys.length > 1;
    const named = new Set(); // one legend entry a part, though every run has its line
    return shown.flatMap((index) => keys.filter((key) => key in curves[index].series).flatMap((key) => {
      const part = keys.indexOf(key);
      const look = byPart ? { color: colorOf(part) } : { color: colorOf(slots.get(index)), dash: dashes[part % dashes.length] };
      const showlegend = !named.has(key);
      named.add(key);
      return lines(curves[index], key, plot, { name: plot.labels[key], showlegend, line: { width: 1.8, ...look } });
    }));
  }

  /** The curve of one series; when it is smoothed, the logged values faintly behind it. */
  function lines(curve, key, plot, look) {
    const weight = plot.smooth ? Number(smoothing.value) : 0;
    const line = {
      ...look,
      ...points(curve, key, weight),
      // Few points: a stage of one step would be a line without length.
      mode: curve.tokens.length <= 10 ? "lines+markers" : "lines",
      marker: { color: look.line.color },
      meta: `${curve.name} ${look.name}`,
      hovertemplate: "%{y:.4g} at %{x:,} tokens<extra>%{meta}</extra>",
    };
    line.customdata = line.x.map(() => [curve.run]);
    const logged = { ...line, ...points(curve, key, 0), opacity: 0.25, hoverinfo: "skip", hovertemplate: null, showlegend: false };
    return weight > 0 ? [logged, line] : [line];
  }

  /** Where a stage of a shown run ends and another begins, each place once. */
  function boundaries() {
    const ends = new Map();
    for (const curve of shownCurves().map((index) => curves[index])) {
      let count = 0;
      curve.stages.slice(0, -1).forEach(([name, length], index) => {
        count += length;
        const end = curve.tokens[count - 1];
        if (!ends.has(end)) ends.set(end, new Set());
        ends.get(end).add(`${name} | ${curve.stages[index + 1][0]}`);
      });
    }
    return [...ends].map(([end, names]) => [end, [...names].join(", ")]);
  }

  /** Powers of ten within the shown values, six at most, and 2 and 5 times these where they are few. Where even these
   * are too few, Plotly chooses. */
  function logTicks(plot) {
    const series = shownCurves().flatMap((index) => Object.keys(plot.labels).map((key) => curves[index].series[key] ?? []));
    const values = series.flat().filter((value) => value > 0);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    const high = values.reduce((a, b) => Math.max(a, b), 0);
    const ticks = [];
    const decades = high > 0 ? Math.log10(high / low) : 0;
    const steps = decades > 2.5 ? [1] : [1, 2, 5];
    const every = Math.max(1, Math.ceil(decades / 6));
    for (let power = Math.floor(Math.log10(low)); high > 0 && power <= Math.log10(high); power += 1) {
      if (power % every === 0) ticks.push(...steps.map((step) => Number(`${step}e${power}`)).filter((at) => low <= at && at <= high));
    }
    return ticks.length > 1 ? { tickvals: ticks } : {};
  }

  function layout(plot) {
    const ends = boundaries();
    return {
      ...plot.layout,
      yaxis: { ...plot.layout.yaxis, ...(logLoss.checked && plot.log ? { ...plot.log, ...logTicks(plot) } : {}) },
      shapes: ends.map(([x]) => ({ ...mark, x0: x, x1: x })),
      annotations: ends.map(([x, text]) => ({ ...note, x, text })),
    };
  }

  function update() {
    const weight = Number(smoothing.value);
    document.getElementById("smoothing-value").value = weight > 0 ? weight.toFixed(2) : "off";
    assignColors();
    for (const element of elements) charts.redraw(element);
  }

  for (const element of elements) {
    const plot = plots[element.dataset.curve];
    charts.add(element, () => ({ data: traces(plot), layout: layout(plot) }));
  }
  filters.onChange(() => {
    const passing = boxes.filter(passes);
    if (passing.length && !passing.some((box) => box.checked)) passing[0].checked = true;
    update();
  });
  for (const control of [...boxes, smoothing, logLoss]) control.addEventListener("input", update);

  // The ticked runs in the address, by their names; the first ones where it says nothing.
  const ticked = () => JSON.stringify(boxes.filter((box) => box.checked).map((box) => nameOf(box)));
  const nameOf = (box) => drawer.runs[curves[Number(box.dataset.run)].run].name;
  const first = ticked();
  function restore() {
    const wanted = new Set(state.list("curves", JSON.parse(first)));
    for (const box of boxes) box.checked = wanted.has(nameOf(box));
    update();
  }
  for (const box of boxes) box.addEventListener("input", () => state.set("curves", ticked() === first ? "" : ticked()));
  state.onChange(restore);
  restore();
  state.bind(smoothing, "smoothing");
  state.bind(logLoss, "log");
}
