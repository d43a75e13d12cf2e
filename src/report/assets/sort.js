"use strict";
// A click on a column's name sorts the rows of each part of the table: largest first, smallest
// first, as written. Rows of untrained models stay where they are.
{
  const STEPS = { "": "down", down: "up", up: "" };
  const ARIA = { down: "descending", up: "ascending", "": "none" };

  /** A number where there is one, or a text; null where there is nothing. */
  function valueOf(cell) {
    const shown = cell.querySelector("[data-value]:not([hidden])") ?? cell;
    const given = shown.dataset.value ?? cell.dataset.sort;
    const text = (given ?? cell.querySelector("button, .badge")?.textContent ?? cell.textContent).trim();
    if (text === "" || text === "–") return null;
    const number = Number(text.replace(/,/g, "").replace(/%$/, ""));
    return Number.isNaN(number) ? text : number;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function attach(table, key) {
    const heads = [...table.tHead.rows[0].cells];
    const written = [...table.tBodies].map((body) => [...body.rows]);

    function sort(column, direction) {
      heads.forEach((head, place) => head.setAttribute("aria-sort", place === column ? ARIA[direction] : "none"));
      [...table.tBodies].forEach((body, place) => {
        const rows = [...written[place]];
        const moving = rows.filter((row) => row.cells.length === heads.length && !row.matches(".baseline"));
        if (direction) {
          const found = new Map(moving.map((row) => [row, valueOf(row.cells[column])]));
          const known = moving.filter((row) => found.get(row) !== null);
          const sign = direction === "up" ? 1 : -1;
          known.sort((a, b) => sign * compare(found.get(a), found.get(b)));
          moving.splice(0, moving.length, ...known, ...moving.filter((row) => found.get(row) === null));
        }
        body.append(...rows.filter((row) => !moving.includes(row)), ...moving);
      });
    }

    function restore() {
      const [name, direction = ""] = state.get(key).split(/:(?=(?:up|down)$)/);
      const column = heads.findIndex((head) => head.dataset.title === name);
      sort(column, column < 0 ? "" : direction);
    }

    heads.forEach((head) => {
      const title = head.textContent;
      head.dataset.title = title;
      const button = drawer.el("button", { type: "button", class: "sort" }, title);
      button.addEventListener("click", () => {
        const [name, now = ""] = state.get(key).split(/:(?=(?:up|down)$)/);
        const next = STEPS[name === title ? now : ""];
        state.set(key, next && `${title}:${next}`);
        restore();
      });
      head.replaceChildren(button);
    });
    if (state.get(key)) restore();
    state.onChange(restore);
  }

  // The matrices share a key: another metric stays sorted by the same budget.
  for (const table of document.querySelectorAll("main table")) {
    if (table.tBodies.length && table.id) attach(table, table.id.startsWith("matrix-") ? "sort" : `sort-${table.id}`);
  }
}
