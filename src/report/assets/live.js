"use strict";
// Asks the server now and then whether a run has written something, and if so loads the page anew
// with the same choices. An open drawer is left alone until it is closed.
{
  const KEY = "linearard-dashboard";
  const { refresh, version } = document.body.dataset;
  const status = document.getElementById("live");
  const boxes = () => [...document.querySelectorAll("[data-run]")];
  const named = (box) => box.nextElementSibling.nextElementSibling.textContent;
  const controls = () => [...document.querySelectorAll("#smoothing, #log-loss, #variants, #run-filter")];

  function save() {
    const state = {
      theme: document.documentElement.dataset.theme ?? "",
      filters: filters.state(),
      figures: figures.state(),
      curves: boxes().filter((box) => box.checked).map(named),
      controls: Object.fromEntries(controls().map((one) => [one.id, one.type === "checkbox" ? one.checked : one.value])),
      scroll: scrollY,
    };
    sessionStorage.setItem(KEY, JSON.stringify(state));
  }

  function restore() {
    const kept = sessionStorage.getItem(KEY);
    if (!kept) return;
    sessionStorage.removeItem(KEY);
    const state = JSON.parse(kept);
    if (state.theme) {
      document.documentElement.dataset.theme = state.theme;
      charts.redraw();
    }
    const curves = new Set(state.curves);
    for (const box of boxes()) box.checked = curves.has(named(box));
    for (const one of controls()) {
      if (!(one.id in state.controls)) continue;
      if (one.type === "checkbox") one.checked = state.controls[one.id];
      else one.value = state.controls[one.id];
      one.dispatchEvent(new Event("input", { bubbles: true }));
    }
    filters.restore(state.filters);
    figures.restore(state.figures);
    scrollTo({ top: state.scroll, behavior: "instant" });
  }

  async function ask() {
    try {
      const answer = await fetch("/version", { cache: "no-store" });
      const now = (await answer.text()).trim();
      status.textContent = "live";
      if (answer.ok && now !== version && !drawer.isOpen()) {
        save();
        location.reload();
        return;
      }
    } catch {
      status.textContent = "the server does not answer";
    }
    setTimeout(ask, 1000 * Number(refresh));
  }

  restore();
  setTimeout(ask, 1000 * Number(refresh));
}
