"use strict";
// The marks of values under the filters. Python (src/report/noise.py) wrote how each value stands to
// every other one that it may be compared with; here the best of those that are left is looked up.

const marks = (() => {
  const LETTERS = { b: "best", n: "near", u: "unknown", w: "worse" };

  /** Mark elements that are compared with each other; returns the best, or undefined. */
  function apply(elements) {
    if (elements.length === 0) return undefined;
    const sign = "lower" in elements[0].dataset ? -1 : 1;
    const rank = (element) => sign * Number(element.dataset.value);
    const best = elements.reduce((a, b) => (rank(b) > rank(a) ? b : a));
    const isAlone = elements.length === 1;
    for (const one of elements) one.dataset.mark = isAlone ? "alone" : LETTERS[one.dataset.standings[Number(best.dataset.at)]];
    return best;
  }

  return { apply };
})();
