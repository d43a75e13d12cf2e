"use strict";
// The matrix of the chosen block and metric under the filters, and in a line for each budget the
// best of it. Of the groups in a cell the first that is left is shown.
if (document.getElementById("best")) {
  const MOST_NAMED = 2;
  const tables = [...document.querySelectorAll(".matrix")];
  const best = document.getElementById("best");
  const { el } = drawer;
  const runsOf = (entry) => entry.dataset.runs.split(" ").map(Number);
  const nameOf = (entry) => entry.closest("tr").dataset.name;

  /** The entries that are shown, after the others were hidden. */
  function shownEntries(table) {
    const shown = [];
    for (const row of table.querySelectorAll("tr.method")) {
      for (const cell of row.querySelectorAll("td")) {
        const entries = [...cell.querySelectorAll(".entry")];
        const first = entries.find((entry) => filters.shows(runsOf(entry)));
        for (const entry of entries) entry.hidden = entry !== first;
        cell.classList.toggle("none", first === undefined);
        if (first) shown.push(first);
      }
      row.hidden = ![...row.querySelectorAll(".entry")].some((entry) => !entry.hidden);
    }
    return shown;
  }

  function rivals(peers, winner) {
    const named = (mark) => peers.filter((entry) => entry !== winner && entry.dataset.mark === mark).map(nameOf);
    const list = (names) => names.slice(0, MOST_NAMED).join(", ") + (names.length > MOST_NAMED ? ` and ${names.length - MOST_NAMED} more` : "");
    if (peers.length === 1) return ["muted", "nothing to compare with"];
    if (named("near").length) return ["near-mark", `≈ ${list(named("near"))}`];
    if (named("unknown").length) return ["near-mark", "? noise unknown"];
    return ["muted", "no other within noise"];
  }

  function card(peers, winner) {
    const { budget, scaling, runs } = winner.dataset;
    const title = scaling ? `${budget} tokens, ${scaling}` : `${budget} tokens`;
    const [kind, others] = rivals(peers, winner);
    // "LinearARD, linear x8": the scaling is not broken.
    const [method, ...rest] = nameOf(winner).split(/(?<=,) /);
    const name = el(peers.length > 1 ? "strong" : "span", {}, method, ...rest.flatMap((part) => [" ", el("span", { class: "whole" }, part)]));
    const value = [winner.querySelector("button").textContent, winner.querySelector(".detail")?.textContent].filter(Boolean).join(" ");
    return el("div", { class: "best-card", "data-runs": runs },
      el("span", { class: "muted" }, title),
      el("button", { type: "button", class: "open" }, name, el("span", { class: "value" }, value)),
      el("span", { class: kind }, others));
  }

  function update() {
    const labels = JSON.stringify(figures.shown("budget"));
    best.replaceChildren();
    for (const table of tables) {
      table.hidden = JSON.stringify(JSON.parse(table.dataset.labels)) !== labels;
      if (table.hidden) continue;
      const byPeers = new Map();
      for (const entry of shownEntries(table)) {
        const { peers } = entry.dataset;
        if (!byPeers.has(peers)) byPeers.set(peers, []);
        byPeers.get(peers).push(entry);
      }
      const sorted = [...byPeers].sort(([a], [b]) => parseInt(a, 10) - parseInt(b, 10));
      for (const [, peers] of sorted) best.append(card(peers, marks.apply(peers)));
    }
    best.hidden = best.children.length === 0;
  }

  figures.onShown("budget", update);
}
