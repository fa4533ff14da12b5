"use strict";
// Sorts the cards of a comparison, shows a few at a time and enlarges their images. The page is complete without it.
(() => {
  const PAGE = 12; // cards shown at first, and added by the button below them
  const list = document.getElementById("prompts");
  const { scorers, digits, models } = JSON.parse(list.dataset.page);
  const [scorer, pair, order] = ["scorer", "pair", "order"].map((id) => document.getElementById(id));
  const cards = [...list.children].map((element, place) => ({
    element,
    place,
    means: JSON.parse(element.dataset.means),
    random: element.dataset.random === "" ? null : Number(element.dataset.random),
  }));
  const more = document.getElementById("more");
  let limit = PAGE;
  let arranged = [];
  const rules = {
    original: (a, b) => a.place - b.place,
    gains: (a, b) => b.difference - a.difference || a.place - b.place,
    losses: (a, b) => a.difference - b.difference || a.place - b.place,
    random: (a, b) => a.random - b.random,
  };

  function signed(value, decimals) {
    const places = { minimumFractionDigits: decimals, maximumFractionDigits: decimals, roundingMode: "halfEven" };
    const size = Math.abs(value).toLocaleString("en-US", places);
    return (value < 0 && /[1-9]/.test(size) ? "\u2212" : "+") + size;
  }

  // The largest gain, the largest loss, the next gain, the next loss, ...
  function fromBothEnds(sorted) {
    return sorted.map((_, index) => sorted[index % 2 ? sorted.length - (index + 1) / 2 : index / 2]);
  }

  function arrange() {
    const index = Number(scorer.value);
    const [base, other] = pair.value.split(" ").map(Number);
    for (const card of cards) {
      card.difference = card.means[index][other] - card.means[index][base];
      const gain = card.element.querySelector(".gain");
      gain.className = "gain " + (card.difference > 0 ? "better" : card.difference < 0 ? "worse" : "");
      gain.querySelector("span").textContent = scorers[index];
      gain.querySelector("b").textContent = signed(card.difference, digits[index]);
    }
    const usable = cards.filter((card) => order.value !== "random" || card.random !== null);
    const sorted = usable.sort(rules[order.value] ?? rules.gains);
    arranged = order.value === "extremes" ? fromBothEnds(sorted) : sorted;
    const shown = arranged.slice(0, limit);
    for (const card of cards) card.element.hidden = true;
    for (const card of arranged) list.append(card.element);
    for (const card of shown) card.element.hidden = false;
    const left = arranged.length - shown.length;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(PAGE, left)} more`;
    for (const line of list.querySelectorAll("[data-scorer]")) {
      line.classList.toggle("chosen", Number(line.dataset.scorer) === index);
    }
    const words = order.selectedOptions[0].textContent.toLowerCase();
    document.getElementById("status").textContent =
      `${left ? `${shown.length} of ${arranged.length}` : shown.length} prompts, ${words}${order.value === "random" || order.value === "original" ? " order" : ""}: ` +
      `${scorers[index]}, ${models[other]} minus ${models[base]}.`;
  }

  const zoom = document.getElementById("zoom");
  let figures = [];
  let current = 0;

  function show(place) {
    current = (place + figures.length) % figures.length;
    const figure = figures[current];
    document.getElementById("zoom-prompt").textContent = figure.closest("li").querySelector(".prompt").textContent;
    document.getElementById("zoom-figure").replaceChildren(
      figure.querySelector("img").cloneNode(),
      figure.querySelector("figcaption").cloneNode(true),
    );
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (!button) return;
    figures = [...button.closest(".row").children];
    show(figures.indexOf(button.closest("figure")));
    zoom.showModal();
  });
  zoom.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(current - 1);
    if (event.key === "ArrowRight") show(current + 1);
  });
  zoom.addEventListener("click", (event) => {
    if (event.target === zoom) zoom.close(); // the backdrop
  });
  document.getElementById("before").addEventListener("click", () => show(current - 1));
  document.getElementById("after").addEventListener("click", () => show(current + 1));
  document.getElementById("close").addEventListener("click", () => zoom.close());

  for (const control of [scorer, pair, order]) {
    control.addEventListener("change", () => {
      limit = PAGE;
      arrange();
    });
  }
  more.addEventListener("click", () => {
    const added = arranged[limit].element;
    limit += PAGE;
    arrange();
    added.querySelector("button.open").focus({ preventScroll: true });
  });
  document.getElementById("controls").hidden = false;
  arrange();
})();
