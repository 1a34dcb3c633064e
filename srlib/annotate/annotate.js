// The page of notebook 08: shows Session.page (session.py), sends clicks and keys back.
// Whatever people or models wrote becomes a text node (`append` of a string), never HTML.

const KEYS = { 1: "left", 0: "tie", 2: "right" };
const LABELS = { left: "1 · Left", tie: "0 · Tie", right: "2 · Right" };

function element(tag, name, ...children) {
  const node = document.createElement(tag);
  node.className = name;
  node.append(...children);
  return node;
}

function button(label, pressed, onClick) {
  const node = element("button", "", label);
  node.type = "button";
  node.disabled = onClick === null;
  if (pressed !== null) node.setAttribute("aria-pressed", pressed);
  node.addEventListener("click", onClick ?? (() => {}));
  return node;
}

function card(side, { text, score }) {
  return element("section", "card", element("h4", "", LABELS[side]), element("p", "text", text), element("p", "score", `Score ${score}`));
}

function render({ model, el }) {
  const root = element("div", "srlib-annotate");
  root.tabIndex = 0;
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // or JupyterLab takes the digits for itself
  el.append(root);
  let active = 0;
  let number = null;
  let goingTo = null; // until that item is shown, a key would answer for the one before it

  function choose(index, choice) {
    if (goingTo !== null) return;
    const page = model.get("page");
    active = Math.min(index + 1, page.questions.length - 1);
    model.send({ number: page.number, criterion: page.questions[index].name, choice });
  }

  function go(step) {
    const page = model.get("page");
    const to = page.number + step;
    if (goingTo !== null || to < 0 || to >= page.total) return;
    goingTo = to;
    model.send({ number: to });
  }

  function question(page, index) {
    const { text, choice } = page.questions[index];
    const buttons = Object.keys(LABELS).map((side) => button(LABELS[side], choice === side, () => choose(index, side)));
    return element("div", index === active ? "question active" : "question", element("span", "", text), element("span", "choices", ...buttons));
  }

  function draw() {
    const page = model.get("page");
    if (page.number === goingTo) goingTo = null;
    if (page.number !== number) {
      number = page.number;
      active = Math.max(0, page.questions.findIndex((q) => q.choice === ""));
    }
    const all = page.done === page.total;
    const bar = element("div", "bar", element("div", ""));
    bar.firstChild.style.width = `${(100 * page.done) / page.total}%`;
    const hadFocus = root.contains(document.activeElement);
    root.replaceChildren(
      element("div", "head", element("strong", "", `Item ${page.number + 1} of ${page.total}`), element("span", "", `${page.done} done`), bar),
      element("div", "sections", ...page.sections.map((s) => element("section", "", element("h4", "", s.heading), element("p", "text", s.text)))),
      element("div", "cards", card("left", page.left), card("right", page.right)),
      element("div", "questions", ...page.questions.map((_, index) => question(page, index))),
      element("div", "foot",
        button("← Back", null, page.number > 0 ? () => go(-1) : null),
        button("Next →", null, page.number + 1 < page.total ? () => go(1) : null),
        element("span", "keys", "Keys: 1 left, 2 right, 0 tie · ↑ ↓ question · Enter or → next, ← back"),
      ),
      element("p", "error", page.error),
      element("p", "end", all ? "All items are done, and everything is saved. Run the cells below again to see the results." : ""),
    );
    if (hadFocus) root.focus({ preventScroll: true });
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && event.target.tagName === "BUTTON") return; // which it clicks
    const last = model.get("page").questions.length - 1;
    if (event.key in KEYS) choose(active, KEYS[event.key]);
    else if (event.key === "ArrowDown") active = Math.min(active + 1, last);
    else if (event.key === "ArrowUp") active = Math.max(active - 1, 0);
    else if (event.key === "ArrowRight" || event.key === "Enter") go(1);
    else if (event.key === "ArrowLeft") go(-1);
    else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  });
  model.on("change:page", draw);
  draw();
  return () => model.off("change:page", draw);
}

export default { render };
