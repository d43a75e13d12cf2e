"use strict";
// The headline table under the filters. Of the rows at one place the first that is left is shown; the
// table is ordered so that it is the one with the most usual settings. Every cell says how it stands
// to each row of its block (src/report/headline.py), of which the best that is left is looked up.
{
  const MARKS = { b: "best", n: "near", u: "unknown", w: "worse" };
  const table = document.getElementById("headline-table");
  const blocks = document.getElementById("headline-block");
  const variants = document.getElementById("variants");

  const allRows = (block) => [...block.querySelectorAll(".method")];
  const passingRows = (block) => allRows(block).filter((row) => filters.shows(row.dataset.runs.split(" ").map(Number)));

  function shownRows(block) {
    const passing = passingRows(block);
    if (variants.checked) return passing;
    return passing.filter((row, index) => passing.findIndex((other) => other.dataset.place === row.dataset.place) === index);
  }

  function mark(block, rows) {
    const places = new Map(allRows(block).map((row, place) => [row, place]));
    const columns = Math.max(0, ...rows.map((row) => row.cells.length));
    for (let column = 0; column < columns; column += 1) {
      const cells = rows.map((row) => row.cells[column]).filter((cell) => "value" in cell.dataset);
      if (cells.length === 0) continue;
      const best = cells.reduce((a, b) => (Number(b.dataset.value) > Number(a.dataset.value) ? b : a));
      const place = places.get(best.parentElement);
      for (const cell of cells) cell.dataset.mark = cells.length > 1 ? MARKS[cell.dataset.standings[place]] : "alone";
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
      for (const row of allRows(block)) row.hidden = !rows.includes(row);
      for (const row of block.querySelectorAll(".baseline")) row.hidden = false;
      mark(block, rows);
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
