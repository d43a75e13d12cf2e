"use strict";
// The headline table: of several settings at one place the most usual one is shown, and the best of
// a block's rows is marked. Both are chosen among the rows that the filters leave, by the rules of
// src/report/groups.py and src/report/noise.py.
{
  const table = document.getElementById("headline-table");
  const blocks = document.getElementById("headline-block");
  const variants = document.getElementById("variants");

  const rank = (row) => row.dataset.rank.split(" ").map(Number);
  const before = (one, other) => {
    const [a, b] = [rank(one), rank(other)];
    return a[0] !== b[0] ? a[0] < b[0] : a[1] < b[1];
  };

  const passingRows = (block) => [...block.querySelectorAll(".method")].filter((row) => filters.shows(row.dataset.runs.split(" ").map(Number)));

  function shownRows(block) {
    const passing = passingRows(block);
    if (variants.checked) return passing;
    const mains = new Map();
    for (const row of passing) {
      const main = mains.get(row.dataset.place);
      if (!main || before(row, main)) mains.set(row.dataset.place, row);
    }
    return [...mains.values()];
  }

  function standing(cell, best) {
    const value = Number(cell.dataset.value);
    if (value === Number(best.dataset.value)) return "best";
    if (cell.dataset.half === "" || best.dataset.half === "") return "unknown";
    const noise = Math.hypot(Number(cell.dataset.half), Number(best.dataset.half));
    return Math.abs(value - Number(best.dataset.value)) <= noise ? "near" : "worse";
  }

  function mark(rows) {
    const columns = Math.max(0, ...rows.map((row) => row.cells.length));
    for (let column = 0; column < columns; column += 1) {
      const cells = rows.map((row) => row.cells[column]).filter((cell) => "value" in cell.dataset);
      if (cells.length === 0) continue;
      const best = cells.reduce((a, b) => (Number(b.dataset.value) > Number(a.dataset.value) ? b : a));
      for (const cell of cells) cell.dataset.mark = cells.length > 1 ? standing(cell, best) : "alone";
    }
  }

  let wanted = "0"; // kept while the filters do not let it be shown

  /** The blocks that the filters leave, of which one is chosen. */
  function chosenBlocks() {
    const passing = [...table.tBodies].filter((block) => passingRows(block).length);
    for (const option of blocks.options) {
      if (option.value !== "all") option.hidden = option.disabled = !passing.some((block) => block.dataset.block === option.value);
    }
    if (wanted === "all") return passing;
    const chosen = passing.find((block) => block.dataset.block === wanted) ?? passing[0];
    if (chosen) blocks.value = chosen.dataset.block;
    return chosen ? [chosen] : [];
  }

  function update() {
    const chosen = chosenBlocks();
    let shown = 0;
    let passing = 0;
    for (const block of table.tBodies) {
      block.hidden = !chosen.includes(block);
      if (block.hidden) continue;
      const rows = shownRows(block);
      const kept = new Set(rows);
      for (const row of block.querySelectorAll(".method")) row.hidden = !kept.has(row);
      for (const row of block.querySelectorAll(".baseline")) row.hidden = false;
      mark(rows);
      shown += rows.length;
      passing += passingRows(block).length;
    }
    document.getElementById("headline-count").value = `${shown} of ${passing} rows`;
  }

  if (table) {
    variants.addEventListener("input", update);
    blocks.addEventListener("change", () => {
      wanted = blocks.value;
      update();
    });
    filters.onChange(update);
    update();
  }
}
