"use strict";
// One tab of panels at a time. Without this script all are shown, one below the other.
{
  const links = [...document.querySelectorAll("[data-tab]")];
  const tabs = [...document.querySelectorAll(".tab")];

  function show() {
    const names = links.map((link) => link.dataset.tab);
    const name = names.includes(state.get("tab")) ? state.get("tab") : names[0];
    for (const tab of tabs) tab.hidden = tab.id !== `tab-${name}`;
    for (const link of links) {
      if (link.dataset.tab === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  links.forEach((link, place) => link.addEventListener("click", (event) => {
    event.preventDefault();
    state.set("tab", place ? link.dataset.tab : "", { isStep: true });
    show();
    scrollTo({ top: 0, behavior: "instant" });
  }));
  state.onChange(show);
  show();
}
