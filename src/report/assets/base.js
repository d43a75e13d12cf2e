"use strict";
// Theme and charts. A chart is an element and a function that gives {data, layout, runs}; it is
// drawn when it first comes into view and again when the theme changes. A click on a point opens the
// runs behind it, or behind the chart.

const charts = (() => {
  const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
  const json = (id) => JSON.parse(document.getElementById(id).textContent);
  const { template } = json("page-data");
  const builders = new Map();
  const drawn = new Set();
  const touch = matchMedia("(pointer: coarse)").matches;

  function color(variable) {
    const probe = document.createElement("span");
    probe.style.color = `var(${variable})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  /** The template on paper (src/report/to_plotly.py) in the colours of the theme. */
  function themed() {
    const grid = color("--line");
    const { layout } = template;
    const [xaxis, yaxis] = [layout.xaxis, layout.yaxis].map((axis) => ({ ...axis, gridcolor: grid, linecolor: grid }));
    return {
      layout: {
        ...layout, xaxis, yaxis,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("--muted") },
        hoverlabel: { bgcolor: color("--raised"), bordercolor: grid, font: { color: color("--ink") } },
        dragmode: touch ? false : "zoom", // a drag on a phone scrolls the page
      },
    };
  }

  /** The layout, with a word across charts of runs that were made up; benchmarks are of no run. */
  function stamped(layout, element) {
    if (!document.body.matches(".synthetic") || element.closest("#performance")) return layout;
    const place = { xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, textangle: -18 };
    const word = { ...place, text: "synthetic", opacity: 0.22, font: { size: 34 } };
    return { ...layout, annotations: [...(layout.annotations ?? []), word] };
  }

  /** Draw a chart, or when it is in a hidden tab have it drawn as soon as it comes into view. */
  function draw(element) {
    if (!element.checkVisibility()) {
      drawn.delete(element);
      observer.observe(element);
      return;
    }
    const { data, layout, empty, runs } = builders.get(element)();
    drawn.add(element);
    element.classList.toggle("empty", data.length === 0);
    if (data.length === 0) {
      Plotly.purge(element);
      element.textContent = empty ?? "not logged";
      return;
    }
    if (!element.querySelector(".plot-container")) element.textContent = "";
    Plotly.react(element, data, { ...stamped(layout, element), template: themed() }, CONFIG);
    element.removeAllListeners("plotly_click");
    element.on("plotly_click", ({ points: [point] }) => {
      const opened = point.customdata ?? runs ?? [];
      if (opened.length) drawer.open(opened);
    });
  }

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((candidate) => candidate.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });

  return {
    add(element, build) {
      builders.set(element, build);
      observer.observe(element);
    },
    /** Draw one chart, or all, again; one that was never in view waits until it is. */
    redraw(element) {
      if (element === undefined) [...drawn].forEach(draw);
      else if (drawn.has(element)) draw(element);
    },
    json,
    stamped,
    template,
  };
})();

{
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const changed = () => { label(); charts.redraw(); };
  const restore = () => {
    const wanted = state.get("theme");
    if (["light", "dark"].includes(wanted)) root.dataset.theme = wanted;
    else delete root.dataset.theme;
    changed();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    state.set("theme", root.dataset.theme);
    changed();
  });
  system.addEventListener("change", changed);
  state.onChange(restore);
  restore();

  for (const element of document.querySelectorAll("[data-figure]")) {
    charts.add(element, () => charts.json(element.dataset.figure));
  }
}
