/* Search and filters of the front page: cards by title, method and room, and the public names of the reference. */
"use strict";
(() => {
  const form = document.getElementById("find");
  const query = document.getElementById("query");
  const count = document.getElementById("count");
  const also = document.getElementById("also");
  const cards = [...document.querySelectorAll("#cards > .card")];
  const buttons = [...form.querySelectorAll("button[data-filter]")];
  const names = window.softgateNames || [];
  const chosen = { site: "", verdict: "" };
  const MOST_NAMES = 8;

  function matches(card, words) {
    const inText = words.every((word) => card.dataset.text.includes(word));
    const inSite = !chosen.site || card.dataset.sites.split(" ").includes(chosen.site);
    return inText && inSite && (!chosen.verdict || card.dataset.verdicts.split("|").includes(chosen.verdict));
  }

  /* Every word somewhere in the path, but one at least in the name itself: a room alone would bring all it has. */
  function named(path, words) {
    const own = path.slice(path.lastIndexOf(".") + 1);
    return words.every((word) => path.includes(word)) && words.some((word) => own.includes(word));
  }

  function showNames(words) {
    const found = words.length ? names.filter(([path]) => named(path.toLowerCase(), words)) : [];
    also.replaceChildren(...found.slice(0, MOST_NAMES).map(([path, address, summary]) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = address;
      link.append(Object.assign(document.createElement("code"), { textContent: path }));
      item.append(link, ` ${summary}`);
      return item;
    }));
    also.hidden = !found.length;
  }

  function update() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      card.hidden = !matches(card, words);
      shown += !card.hidden;
    }
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(chosen[button.dataset.filter] === button.dataset.value));
    }
    count.textContent = shown === cards.length ? `${shown} papers` : `${shown} of ${cards.length} papers`;
    showNames(words);
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("input", update);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const { filter, value } = button.dataset;
      chosen[filter] = chosen[filter] === value ? "" : value;
      update();
    });
  }
  const asked = new URLSearchParams(location.search);
  query.value = asked.get("q") || "";
  for (const filter of Object.keys(chosen)) {
    chosen[filter] = asked.get(filter) || "";
  }
  form.hidden = false;
  update();
})();
