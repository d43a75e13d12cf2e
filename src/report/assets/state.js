"use strict";
// What the reader chose, in the address behind `#`: a copied address shows the same. A control names
// its key; what stands at its default is left out.

const state = (() => {
  const listeners = [];
  const read = () => new URLSearchParams(location.hash.slice(1));
  let values = read();

  function write(isStep) {
    const text = values.toString();
    const address = location.pathname + location.search + (text ? `#${text}` : "");
    history[isStep ? "pushState" : "replaceState"](null, "", address);
  }

  addEventListener("popstate", () => {
    values = read();
    for (const listener of listeners) listener();
  });

  return {
    get: (key) => values.get(key) ?? "",
    /** A list in the address; `fallback` where there is none, or not one. */
    list(key, fallback) {
      try {
        const found = JSON.parse(values.get(key) ?? "null");
        return Array.isArray(found) ? found : fallback;
      } catch {
        return fallback; // somebody typed it
      }
    },
    /** Remember a choice; with `isStep` the browser's "back" undoes it. */
    set(key, value, { isStep = false } = {}) {
      if (value) values.set(key, value);
      else values.delete(key);
      write(isStep);
    },
    /** Called when the address was changed: by hand, or by going back. */
    onChange(listener) { listeners.push(listener); },
    /** Keep an input in the address. `fallback` is its value when the address says nothing. */
    bind(input, key) {
      const isBox = input.type === "checkbox";
      const now = () => (isBox ? String(input.checked) : input.value);
      const fallback = now();
      const restore = () => {
        const wanted = state.get(key) || fallback;
        if (wanted === now()) return;
        if (isBox) input.checked = wanted === "true";
        else input.value = wanted;
        input.dispatchEvent(new Event("input", { bubbles: true }));
      };
      input.addEventListener("input", () => state.set(key, now() === fallback ? "" : now()));
      listeners.push(restore);
      restore();
    },
  };
})();
