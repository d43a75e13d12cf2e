"use strict";
// The filter above the list of runs: every word must occur in a row.
{
  const filter = document.getElementById("run-filter");
  // Taken once: sorting moves the rows.
  const rows = [...document.querySelectorAll("#run-list tbody tr")];
  const commandOf = (row) => drawer.runs[Number(row.dataset.runs)].command;
  // Not the links' own words, of which "folder" holds "old".
  const texts = rows.map((row) => [...row.querySelectorAll("td, .open, .fault")].map((part) => part.textContent).concat(commandOf(row)).join(" ").toLowerCase());

  function update() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, index) => {
      row.hidden = !filters.shows([Number(row.dataset.runs)]) || !words.every((word) => texts[index].includes(word));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("run-count").value = shown < rows.length ? `${shown} of ${rows.length}` : "";
  }

  filter.addEventListener("input", update);
  filters.onChange(update);
  state.bind(filter, "find");
}
