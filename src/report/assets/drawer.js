"use strict";
// What is known of a run: its command, config and files, in a drawer beside the page.

const drawer = (() => {
  const { runs, lines } = charts.json("page-data");
  const dialog = document.getElementById("drawer");

  /** An element with text or children; text is never read as HTML. */
  function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  async function copy(button, text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Browsers that give no clipboard to local files still copy a selection.
      const area = el("textarea", { class: "offscreen", readonly: "" }, text);
      dialog.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1200);
  }

  function copied(title, text, kind) {
    const button = el("button", { type: "button", onclick: () => copy(button, text) }, "copy");
    const head = el("div", { class: "drawer-part" }, el("h3", {}, title), button);
    return [head, el("pre", { class: kind, tabindex: "0" }, el("code", {}, text))];
  }

  function details(run) {
    const config = run.config.map((index) => lines[index]).join("\n");
    const facts = el("dl", {});
    for (const [key, value] of run.facts) facts.append(el("dt", {}, key), el("dd", {}, value));
    const files = el("p", { class: "files" });
    for (const [name, href] of run.files) files.append(el("a", { href, target: "_blank" }, name), " ");
    return [
      el("p", { class: "lead" }, el("strong", {}, run.label), " ", el("span", { class: `badge ${run.state}` }, run.state)),
      ...(run.label === run.name ? [] : [el("p", { class: "muted" }, run.name)]),
      ...(run.note ? [el("p", { class: "fault" }, run.note)] : []),
      facts,
      ...(run.command ? copied("Command", run.command, "command-line") : []),
      ...(config ? copied("Config, resolved", config, "config") : [el("p", { class: "muted" }, "The config could not be read.")]),
      ...(run.files.length ? [el("h3", {}, "Files"), files] : []),
    ];
  }

  function open(chosen, title = "") {
    const body = el("div", { class: "drawer-body" });
    const tabs = el("div", { class: "drawer-runs", role: "group", "aria-label": "Runs" });
    const show = (index) => {
      state.set("run", runs[index].name);
      body.replaceChildren(...details(runs[index]));
      for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(Number(tab.dataset.index) === index));
    };
    if (chosen.length > 1) {
      for (const index of chosen) {
        const seed = runs[index].facts.find(([key]) => key === "seed");
        const label = seed ? `seed ${seed[1]}` : runs[index].label;
        tabs.append(el("button", { type: "button", "data-index": index, onclick: () => show(index) }, label));
      }
    }
    const heading = title || (chosen.length > 1 ? `${chosen.length} runs` : "Run");
    const close = el("button", { type: "button", onclick: () => dialog.close() }, "close");
    dialog.replaceChildren(el("div", { class: "drawer-head" }, el("h2", {}, heading), close), tabs, body);
    show(chosen[0]);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  /** The run of the address, if it names one. */
  function restore() {
    const index = runs.findIndex((run) => run.name === state.get("run"));
    if (index >= 0) open([index]);
    else if (dialog.open) dialog.close();
  }

  dialog.addEventListener("close", () => state.set("run", ""));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (!button) return;
    event.preventDefault(); // it may stand in a summary, which a click would fold
    const chosen = button.dataset.open ?? button.closest("[data-runs]").dataset.runs;
    open(chosen.split(" ").map(Number));
  });

  state.onChange(restore);
  restore();

  return { runs, open, el, isOpen: () => dialog.open };
})();
