"use strict";
// The table of all scores under the filters. Of the rows at one place the first that is left is shown;
// Python orders them so that it is the one with the most usual settings.
{
  const table = document.getElementById("headline-table");
  const blocks = document.getElementById("headline-block");
  const variants = document.getElementById("variants");
  const written = new Map([...(table?.tBodies ?? [])].map((block) => [block, [...block.querySelectorAll(".method")]]));

  const passingRows = (block) => written.get(block).filter((row) => filters.shows(row.dataset.runs.split(" ").map(Number)));

  function shownRows(block) {
    const passing = passingRows(block);
    if (variants.checked) return passing;
    return passing.filter((row, index) => passing.findIndex((other) => other.dataset.place === row.dataset.place) === index);
  }

  function mark(rows) {
    const columns = Math.max(0, ...rows.map((row) => row.cells.length));
    for (let column = 0; column < columns; column += 1) {
      marks.apply(rows.map((row) => row.cells[column]).filter((cell) => "value" in cell.dataset));
    }
  }

  /** Hide the columns of scores that no shown row has. */
  function fold(shown) {
    const rows = [...table.rows].filter((row) => row.cells.length > 1);
    for (let column = 0; column < table.tHead.rows[0].cells.length; column += 1) {
      const isScore = rows.some((row) => "value" in row.cells[column].dataset);
      const isEmpty = isScore && !shown.some((row) => "value" in row.cells[column].dataset);
      for (const row of rows) row.cells[column].hidden = isEmpty;
    }
  }

  const wanted = () => state.get("block") || "0"; // kept while the filters do not let it be shown

  /** The blocks that the filters leave, of which one is chosen. */
  function chosenBlocks() {
    const passing = [...table.tBodies].filter((block) => passingRows(block).length);
    for (const option of blocks.options) {
      if (option.value !== "all") option.hidden = option.disabled = !passing.some((block) => block.dataset.block === option.value);
    }
    if (wanted() === "all") {
      blocks.value = "all";
      return passing;
    }
    const chosen = passing.find((block) => block.dataset.block === wanted()) ?? passing[0];
    if (chosen) blocks.value = chosen.dataset.block;
    return chosen ? [chosen] : [];
  }

  function update() {
    const chosen = chosenBlocks();
    const shown = [];
    let passing = 0;
    for (const block of table.tBodies) {
      block.hidden = !chosen.includes(block);
      if (block.hidden) continue;
      const rows = shownRows(block);
      for (const row of written.get(block)) row.hidden = !rows.includes(row);
      for (const row of block.querySelectorAll(".baseline")) row.hidden = false;
      mark(rows);
      shown.push(...rows);
      passing += passingRows(block).length;
    }
    fold(shown);
    document.getElementById("headline-count").value = `${shown.length} of ${passing} rows`;
  }

  if (table) {
    variants.addEventListener("input", update);
    state.bind(variants, "variants");
    blocks.addEventListener("change", () => {
      state.set("block", blocks.value === "0" ? "" : blocks.value);
      update();
    });
    state.onChange(update);
    filters.onChange(update);
    update();
  }
}
