"use strict";
// Theme and charts. A chart is an element and a function that gives {data, layout}; it is drawn
// when it first comes into view and again when the theme changes.

const charts = (() => {
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

  function themed(layout) {
    const axes = Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
    const grid = color("--line");
    const styledAxes = axes.map((key) => [key, { ...layout[key], gridcolor: grid, linecolor: grid }]);
    return {
      ...layout,
      ...Object.fromEntries(styledAxes),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("--muted") },
      hoverlabel: { bgcolor: color("--raised"), bordercolor: grid, font: { color: color("--ink") } },
      dragmode: touch ? false : "zoom", // a drag on a phone scrolls the page
    };
  }

  function draw(element) {
    const { data, layout } = builders.get(element)();
    drawn.add(element);
    element.classList.toggle("empty", data.length === 0);
    if (data.length === 0) {
      Plotly.purge(element);
      element.textContent = "not logged";
      return;
    }
    if (!element.querySelector(".plot-container")) element.textContent = "";
    Plotly.react(element, data, themed(layout), CONFIG);
  }

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((candidate) => candidate.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });

  return {
    color,
    add(element, build) {
      builders.set(element, build);
      observer.observe(element);
    },
    redraw() {
      drawn.forEach(draw);
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
