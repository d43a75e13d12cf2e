"use strict";
// Theme and charts. A chart is an element and a function that gives {data, layout}; it is drawn
// when it first comes into view and again when the theme changes.

const charts = (() => {
  // The same as in src/report/charts.py.
  const COLORS = ["#2f7fd1", "#d9622b", "#17a08a", "#a35fd0", "#c79a1b", "#d6568a", "#6b8e3d", "#7d8590"];
  const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
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

  function withAxes(layout, grid) {
    const axes = Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
    const styled = axes.map((key) => [key, { ...layout[key], gridcolor: grid, linecolor: grid }]);
    return { ...layout, ...Object.fromEntries(styled) };
  }

  function themed(layout) {
    const grid = color("--line");
    return {
      ...withAxes(layout, grid),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("--muted") },
      hoverlabel: { bgcolor: color("--raised"), bordercolor: grid, font: { color: color("--ink") } },
      dragmode: touch ? false : "zoom", // a drag on a phone scrolls the page
    };
  }

  function draw(element) {
    const { data, layout, empty, click } = builders.get(element)();
    drawn.add(element);
    element.classList.toggle("empty", data.length === 0);
    if (data.length === 0) {
      Plotly.purge(element);
      element.textContent = empty ?? "not logged";
      return;
    }
    if (!element.querySelector(".plot-container")) element.textContent = "";
    Plotly.react(element, data, themed(layout), CONFIG);
    element.removeAllListeners("plotly_click");
    if (click) {
      element.on("plotly_click", ({ points: [point] }) => {
        const runs = click(point);
        if (runs.length) drawer.open(runs);
      });
    }
  }

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((candidate) => candidate.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });

  return {
    COLORS,
    color,
    /** The layout on white, for a picture by itself. */
    onPaper(layout) {
      return { ...withAxes(layout, "#e6e8ec"), paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", font: { family: "system-ui, sans-serif", size: 13, color: "#22252b" } };
    },
    add(element, build) {
      builders.set(element, build);
      observer.observe(element);
    },
    /** Draw one chart, or all, again; one that was never in view waits until it is. */
    redraw(element) {
      if (element === undefined) drawn.forEach(draw);
      else if (drawn.has(element)) draw(element);
    },
    /** Text for Plotly, which would read tags in it. */
    plain(text) {
      return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    },
    json(id) {
      return JSON.parse(document.getElementById(id).textContent);
    },
  };
})();

{
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const changed = () => { label(); charts.redraw(); };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    changed();
  });
  system.addEventListener("change", changed);
  label();

  for (const element of document.querySelectorAll("[data-figure]")) {
    charts.add(element, () => charts.json(element.dataset.figure));
  }
}
