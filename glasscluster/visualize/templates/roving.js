"use strict";
/* One tab stop for a group of controls, inside which arrow keys, Home and End move (a "roving tabindex"):
   the tabs, a figure's tool bar, the cards of the gallery. */
const GlassRoving = (function () {
  /* Make a group of what `query` finds in it. `moved`: called with the control that an arrow key reached.
     Returns a function that says which control the tab key stops at. */
  function over(group, query, moved) {
    const all = () => Array.from(group.querySelectorAll(query));
    const stop = (at) =>
      all().forEach((control) => {
        control.tabIndex = control === at ? 0 : -1;
      });
    group.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
      const shown = all().filter((control) => control.getClientRects().length > 0);
      const now = shown.indexOf(event.target.closest(query));
      const next = now < 0 ? null : reached(event.key, shown, now);
      if (!next) return;
      event.preventDefault();
      event.stopPropagation();
      stop(next);
      next.focus();
      if (moved) moved(next);
    });
    group.addEventListener("focusin", (event) => {
      const control = event.target.closest(query);
      if (control) stop(control);
    });
    stop(all()[0]);
    return stop;
  }

  function reached(key, shown, now) {
    if (key === "ArrowRight") return shown[(now + 1) % shown.length];
    if (key === "ArrowLeft") return shown[(now + shown.length - 1) % shown.length];
    if (key === "Home") return shown[0];
    if (key === "End") return shown[shown.length - 1];
    if (key === "ArrowDown") return inNextRow(shown, shown[now], 1);
    if (key === "ArrowUp") return inNextRow(shown, shown[now], -1);
    return null;
  }

  /* The control of the next row below (1) or above (-1) that stands nearest; null in a single row. */
  function inNextRow(shown, from, way) {
    const here = from.getBoundingClientRect();
    const away = (control) => {
      const there = control.getBoundingClientRect();
      const rows = way * (there.top - here.top);
      return rows < 4 ? Infinity : 1e4 * rows + Math.abs(there.left - here.left);
    };
    const nearest = shown.reduce((best, control) => (away(control) < away(best) ? control : best), from);
    return nearest === from ? null : nearest;
  }

  return { over };
})();
