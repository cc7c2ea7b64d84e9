"use strict";

// Everything that a model or a data set wrote goes into the page as textContent: never as HTML.
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function browse(form) {
  const { arms, outcomes, tones, items } = JSON.parse(document.getElementById(form.dataset.items).textContent);
  const controls = form.elements;
  const shown = form.querySelector(".item");
  const crosstab = form.querySelector(".crosstab");
  const texts = [];
  let matches = items;
  let position = 0;

  const outcome = (item, arm) => (item.answers[arm] ? outcomes[item.answers[arm][0]] : null);
  const right = (item, arm) => outcome(item, arm) === "correct";

  function text(index) {
    if (texts[index] === undefined) {
      const item = items[index];
      const said = item.answers.flatMap((answer) => (answer ? answer.slice(1, 3) : []));
      texts[index] = [item.id, item.question, item.gold, ...(item.choices || []), ...said]
        .filter((part) => part != null)
        .join("\n")
        .toLowerCase();
    }
    return texts[index];
  }

  function fits(item, arm, wanted) {
    return !wanted || (item.answers[arm] !== null && right(item, arm) === (wanted === "right"));
  }

  function ended(item) {
    const wanted = controls.outcome.value;
    if (wanted === "") return true;
    const asked = controls.third.value === "" ? item.answers : [item.answers[controls.third.value]];
    return asked.some((answer) => answer && answer[0] === Number(wanted));
  }

  function filter() {
    const [first, second] = [controls.first.value, controls.second.value];
    const searched = controls.search.value.trim().toLowerCase();
    matches = items.filter(
      (item, index) =>
        fits(item, first, controls["first-is"].value) &&
        fits(item, second, controls["second-is"].value) &&
        ended(item) &&
        (searched === "" || text(index).includes(searched)),
    );
    form.querySelector(".count").textContent = `${matches.length} of ${items.length} ${form.dataset.unit}`;
    count(first, second);
    show(0);
  }

  function count(first, second) {
    const kinds = [["right", "right"], ["right", "wrong"], ["wrong", "right"], ["wrong", "wrong"]];
    const chosen = [controls["first-is"].value, controls["second-is"].value].join();
    const focused = [...crosstab.children].indexOf(document.activeElement);
    crosstab.replaceChildren(
      ...kinds.map((kind) => {
        const n = items.filter((item) => fits(item, first, kind[0]) && fits(item, second, kind[1])).length;
        const words = `${arms[first]} ${kind[0]}, ${arms[second]} ${kind[1]}`;
        const pressed = kind.join() === chosen;
        const attributes = { type: "button", "aria-pressed": pressed };
        const button = element("button", attributes, element("b", {}, String(n)), words);
        button.addEventListener("click", () => {
          [controls["first-is"].value, controls["second-is"].value] = pressed ? ["", ""] : kind;
          filter();
        });
        return button;
      }),
    );
    if (focused >= 0) crosstab.children[focused].focus();
  }

  function show(wanted) {
    position = Math.max(0, Math.min(wanted, matches.length - 1));
    controls.position.value = matches.length ? position + 1 : 0;
    controls.position.max = matches.length;
    form.querySelector(".total").textContent = matches.length;
    controls.previous.disabled = position === 0;
    controls.next.disabled = position >= matches.length - 1;
    const item = matches[position];
    shown.replaceChildren(...(item ? [question(item), answers(item)] : ["No question fits."]));
  }

  function question(item) {
    const parts = [element("div", { class: "id" }, item.id)];
    if (item.question !== undefined) parts.push(element("p", { class: "question", dir: "auto" }, item.question));
    if (item.choices) {
      // The direction is the text's, not the list item's: its mark would stand beyond the page's edge.
      const choices = item.choices.map((choice) =>
        element("li", choice === item.gold ? { class: "gold" } : {}, element("bdi", {}, choice)),
      );
      parts.push(element("ul", { class: "choices" }, ...choices));
    }
    const gold = element("bdi", { class: "gold" }, item.gold);
    parts.push(element("p", {}, element("span", { class: "label" }, "Right answer: "), gold));
    return element("div", { class: "asked" }, ...parts);
  }

  function answers(item) {
    return element("div", { class: "answers" }, ...arms.map((arm, index) => answer(arm, item.answers[index])));
  }

  function answer(arm, said) {
    if (!said) return element("article", { class: "answer tone-pale" }, element("h4", {}, arm), "not asked");
    const [code, extracted, output, cut] = said;
    const kind = outcomes[code];
    const words = kind.replace("_", " ") + (cut && kind === "correct" ? ", cut off" : "");
    const mark = element("span", {}, element("i", { class: `dot tone-${tones[code]}` }), words);
    const parts = [element("h4", {}, element("bdi", {}, arm), mark)];
    const taken = extracted === null ? element("i", { class: "label" }, "none") : element("bdi", {}, extracted);
    parts.push(element("p", {}, element("span", { class: "label" }, "Answer: "), taken));
    if (output !== undefined) {
      const reached = { dir: "auto", tabindex: 0, role: "region", "aria-label": `Output of ${arm}` };
      parts.push(element("pre", reached, output));
    }
    return element("article", { class: `answer tone-${tones[code]}` }, ...parts);
  }

  let waiting;
  controls.search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 150);
  });
  for (const select of form.querySelectorAll("select")) select.addEventListener("change", filter);
  controls.position.addEventListener("change", () => show(Number(controls.position.value) - 1));
  controls.previous.addEventListener("click", () => show(position - 1));
  controls.next.addEventListener("click", () => show(position + 1));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select, pre")) return;
    if (event.key === "ArrowLeft") show(position - 1);
    if (event.key === "ArrowRight") show(position + 1);
  });
  form.hidden = false;
  filter();
}

for (const note of document.querySelectorAll(".without-script")) note.hidden = true;
for (const form of document.querySelectorAll("form.browser")) browse(form);
