// Photos with words below them. Those that can be chosen are buttons, one stop of the
// Tab key in all: arrow keys move among them. More are asked for when the last is seen.
function render({ model, el }) {
  const add = (parent, tag, name, text) => {
    const child = document.createElement(tag);
    if (name) child.className = `cwr-${name}`;
    if (text) child.textContent = text;
    parent.append(child);
    return child;
  };
  const board = add(el, "section", "board");
  let cards, credits, watcher, asked;

  const buttons = () => [...cards.querySelectorAll("button")];
  const choose = () => {
    const chosen = model.get("chosen");
    buttons().forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i + 1 === chosen));
      button.tabIndex = i + 1 === chosen || (!chosen && !i) ? 0 : -1;
    });
  };
  const onKey = (event) => {
    const all = buttons();
    const top = all[0]?.offsetTop;
    const columns = Math.max(1, all.filter((button) => button.offsetTop === top).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
      Home: -all.length, End: all.length };
    const from = all.indexOf(document.activeElement);
    if (from < 0 || !(event.key in steps)) return;
    event.preventDefault();
    all[Math.min(all.length - 1, Math.max(0, from + steps[event.key]))].focus();
  };

  const addCard = (card, number) => {
    const choice = model.get("choice");
    const item = add(cards, choice ? "button" : "figure", "card");
    const photo = add(item, "span", "photo");
    const image = add(photo, "img");
    image.src = URL.createObjectURL(new Blob([card.jpeg], { type: "image/jpeg" }));
    image.onload = () => URL.revokeObjectURL(image.src);
    if (card.colour) photo.style.borderColor = card.colour;
    card.marks.forEach(([x1, y1, x2, y2, colour, label], place) => {
      const mark = add(photo, "span", "mark");
      Object.assign(mark.style, { left: `${100 * x1}%`, top: `${100 * y1}%`, color: colour,
        width: `${100 * (x2 - x1)}%`, height: `${100 * (y2 - y1)}%` });
      // Boxes often share a corner: their labels stand side by side.
      if (label) add(mark, "b", "", label).style.left = `min(${3.2 * place}em, 100% - 3.2em)`;
    });
    const line = add(item, "span", "line");
    if (card.symbol) add(line, "span", "chip", card.symbol).style.background = card.colour;
    add(line, "b", "", card.title);
    if (card.aside) add(line, "span", "aside", card.aside);
    add(item, "span", "note", card.note);
    item.title = [card.note || card.title, card.credit].filter(Boolean).join(", photo: ");
    if (card.credit) credits.add(card.note ? `${card.note}: ${card.credit}` : card.credit);
    if (!choice) return (image.alt = card.text);
    image.alt = "";
    item.type = "button";
    item.setAttribute("aria-label", card.text);
    item.addEventListener("click", () => {
      model.set("chosen", number);
      model.save_changes();
    });
  };
  const addCards = (added) => {
    added.forEach((card) => addCard(card, cards.children.length + 1));
    const text = credits.size ? `Photos: ${[...credits].join("; ")}.` : "";
    board.querySelector(".cwr-credits p, p.cwr-credits").textContent = text;
    board.querySelector(".cwr-credits").hidden = !credits.size;
    choose();
    asked = false;
    watcher.disconnect();
    // Before the photos are there, cards are so low that the last one would be seen.
    const [seen, last, list] = [watcher, cards.lastElementChild, cards];
    const photos = [...cards.querySelectorAll("img")].map((image) => image.decode());
    if (cards.children.length < model.get("total"))
      Promise.allSettled(photos).then(() => list === cards && seen.observe(last));
  };
  const onSeen = ([entry]) => {
    if (!entry.isIntersecting || asked) return;
    asked = true;
    model.send({ first: cards.children.length });
  };
  const onMessage = (content, buffers) => {
    if (content.csv !== undefined) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([content.csv], { type: "text/csv" }));
      link.download = content.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    } else if (content.version === model.get("version") && content.first === cards.children.length) {
      addCards(content.cards.map((card, i) => ({ ...card, jpeg: buffers[i] })));
    }
  };

  const addBars = () => {
    const bars = model.get("bars");
    if (!bars.length) return;
    const table = add(cards, "table", "bars");
    add(table, "caption", "", "what adds up to the score");
    const most = Math.max(...bars.map(([, value]) => Math.abs(value)), 1e-9);
    for (const [name, value] of bars) {
      const row = add(table, "tr");
      add(row, "th", "", name).scope = "row";
      const bar = add(add(row, "td", "length"), "div", value < 0 ? "less" : "more");
      bar.style.width = `${(100 * Math.abs(value)) / most}%`;
      add(row, "td", "", (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3));
    }
  };
  const addScale = () => {
    const scale = model.get("scale");
    if (!scale.length) return;
    const [low, high, ...colours] = scale;
    const bar = add(board, "div", "scale");
    add(bar, "span", "", low);
    add(bar, "span", "ramp").style.background = `linear-gradient(to right, ${colours.join()})`;
    add(bar, "span", "", high);
  };
  const onBoard = () => {
    const focused = cards ? buttons().indexOf(document.activeElement) : -1;
    watcher?.disconnect();
    board.replaceChildren();
    credits = new Set();
    const head = add(board, "div", "head");
    add(head, "b", "", model.get("title"));
    const choice = model.get("choice");
    if (choice) {
      const save = add(head, "button", "save", "Save ranking (CSV)");
      save.type = "button";
      save.addEventListener("click", () => model.send({ save: true }));
    }
    cards = add(board, "div", choice ? "results" : "cards");
    if (choice) cards.style.cssText = "max-height:400px;overflow-y:auto";
    cards.setAttribute("role", "group");
    cards.setAttribute("aria-label", model.get("title"));
    cards.addEventListener("keydown", onKey);
    watcher = new IntersectionObserver(onSeen, { root: cards });
    // Of many photos they would fill the screen.
    const below = add(board, choice ? "details" : "p", "credits");
    if (choice) add(below, "summary", "", "Photographers and licences");
    if (choice) add(below, "p");
    addCards(model.get("cards"));
    addBars();
    addScale();
    add(board, "div", "summary", model.get("summary"));
    board.append(below);
    // Keep the place of those who work with the keyboard.
    if (focused >= 0) buttons()[focused]?.focus();
  };
  model.on("change:version", onBoard);
  model.on("change:chosen", choose);
  model.on("msg:custom", onMessage);
  onBoard();
  return () => {
    watcher.disconnect();
    model.off("change:version", onBoard);
    model.off("change:chosen", choose);
    model.off("msg:custom", onMessage);
  };
}
export default { render };
