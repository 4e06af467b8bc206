"use strict";
// Charts: what a point says, under the pointer and by arrow keys. Text is set as text, nothing else.
(() => {
  const places = (figure) =>
    [...figure.querySelectorAll("svg .role-mark > [role='graphics-symbol']")].filter((mark) =>
      /point|bar/.test(mark.getAttribute("aria-roledescription") || ""));

  const middle = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2, box];
  };

  const distance = (mark, x, y) => {
    const [left, top, box] = middle(mark);
    if (x >= box.left && x <= box.right && y >= box.top && y <= box.bottom) return 0;
    return Math.hypot(left - x, (top - y) * 0.5);
  };

  for (const figure of document.querySelectorAll("figure.chart")) {
    const told = figure.querySelector(".told");
    const marks = places(figure);
    let here = null;
    const show = (mark) => {
      if (here) here.classList.remove("here");
      here = mark;
      told.textContent = mark ? mark.getAttribute("aria-label") : "";
      if (mark) mark.classList.add("here");
    };
    figure.addEventListener("pointermove", (event) => {
      let best = null, least = 60;
      for (const mark of marks) {
        const far = distance(mark, event.clientX, event.clientY);
        if (far < least) [best, least] = [mark, far];
      }
      if (best !== here) show(best);
    });
    figure.addEventListener("pointerleave", () => show(null));
    figure.addEventListener("blur", () => show(null));
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") show(null);
      else if (event.key === "Home" && marks.length) show(marks[0]);
      else if (event.key === "End" && marks.length) show(marks[marks.length - 1]);
      else if (step && marks.length) {
        const now = marks.indexOf(here);
        show(marks[now < 0 ? (step > 0 ? 0 : marks.length - 1)
          : Math.min(marks.length - 1, Math.max(0, now + step))]);
      } else return;
      event.preventDefault();
    });
  }
})();
