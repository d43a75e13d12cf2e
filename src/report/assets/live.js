"use strict";
// Asks the server now and then whether a run has written something, and if so loads the page anew.
// The address keeps the choices. An open drawer is left alone until it is closed.
{
  const KEY = "linearard-dashboard-scroll";
  const { refresh, version } = document.body.dataset;
  const status = document.getElementById("live");

  async function ask() {
    try {
      const answer = await fetch("/version", { cache: "no-store" });
      const now = (await answer.text()).trim();
      status.textContent = "live";
      if (answer.ok && now !== version && !drawer.isOpen()) {
        sessionStorage.setItem(KEY, String(scrollY));
        location.reload();
        return;
      }
    } catch {
      status.textContent = "the server does not answer";
    }
    setTimeout(ask, 1000 * Number(refresh));
  }

  const scrolled = sessionStorage.getItem(KEY);
  sessionStorage.removeItem(KEY);
  if (scrolled) scrollTo({ top: Number(scrolled), behavior: "instant" });
  setTimeout(ask, 1000 * Number(refresh));
}
