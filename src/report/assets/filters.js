"use strict";
// Model, scaling, method, experiment and sweep: one choice for all panels, kept in the address. A run that does not match is hidden
// wherever it occurs; an element that belongs to runs names them in data-runs.

const filters = (() => {
  const form = document.getElementById("filters");
  const selects = form ? [...form.querySelectorAll("[data-filter]")] : [];
  const listeners = [];
  let visible = new Set(drawer.runs.keys());

  function fill(select) {
    const counts = new Map();
    for (const run of drawer.runs) {
      const value = run[select.dataset.filter];
      if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    select.append(new Option("all", ""));
    for (const value of [...counts.keys()].sort()) {
      select.append(new Option(`${value} (${counts.get(value)})`, value));
    }
    select.disabled = counts.size === 0;
  }

  function apply() {
    const chosen = selects.filter((select) => select.value);
    const matches = (run) => chosen.every((select) => run[select.dataset.filter] === select.value);
    visible = new Set([...drawer.runs.keys()].filter((index) => matches(drawer.runs[index])));
    for (const element of document.querySelectorAll("[data-runs]")) {
      element.hidden = !element.dataset.runs.split(" ").some((index) => visible.has(Number(index)));
    }
    const count = document.getElementById("filter-count");
    const all = drawer.runs.length === 1 ? "1 run" : `${drawer.runs.length} runs`;
    if (count) count.value = chosen.length ? `${visible.size} of ${all}` : all;
    for (const listener of listeners) listener();
  }

  /** The choices of the address; one that no run has counts as none. */
  function restore() {
    for (const select of selects) {
      const value = state.get(select.dataset.filter);
      select.value = [...select.options].some((option) => option.value === value) ? value : "";
    }
    apply();
  }

  function keep() {
    for (const select of selects) state.set(select.dataset.filter, select.value);
    apply();
  }

  for (const select of selects) {
    fill(select);
    select.addEventListener("change", keep);
  }
  if (form) {
    const box = document.getElementById("filter-box");
    box.hidden = false;
    box.open = matchMedia("(min-width: 821px)").matches;
    form.addEventListener("reset", () => setTimeout(keep));
    form.addEventListener("submit", (event) => event.preventDefault());
    state.onChange(restore);
    restore();
  }

  return {
    /** Whether any of these runs is shown; what belongs to no run always is. */
    shows: (runs) => runs.length === 0 || runs.some((index) => visible.has(index)),
    onChange(listener) { listeners.push(listener); },
  };
})();
