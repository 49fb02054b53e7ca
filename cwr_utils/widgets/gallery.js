// A picture whose parts are buttons, so that mouse, keyboard and screen reader can choose.
function render({ model, el }) {
  const frame = document.createElement("div");
  const picture = document.createElement("img");
  frame.className = "cwr-gallery";
  frame.style.cssText = "position:relative;display:inline-block;line-height:0";
  picture.style.maxWidth = "100%";
  frame.append(picture);
  el.append(frame);

  const onPicture = () => {
    URL.revokeObjectURL(picture.src);
    picture.src = URL.createObjectURL(new Blob([model.get("jpeg")], { type: "image/jpeg" }));
    picture.alt = model.get("text");
    const [width, height] = model.get("size");
    const focused = [...frame.querySelectorAll("button")].indexOf(document.activeElement);
    frame.querySelectorAll("button").forEach((button) => button.remove());
    const labels = model.get("labels");
    model.get("areas").forEach(([x1, y1, x2, y2], number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = labels[number];
      button.setAttribute("aria-label", labels[number]);
      button.setAttribute("aria-pressed", String(model.get("chosen") === number + 1));
      button.style.cssText =
        "position:absolute;background:none;border:none;padding:0;cursor:pointer;" +
        `left:${(100 * x1) / width}%;top:${(100 * y1) / height}%;` +
        `width:${(100 * (x2 - x1)) / width}%;height:${(100 * (y2 - y1)) / height}%`;
      button.addEventListener("click", () => {
        model.set("chosen", number + 1);
        model.save_changes();
      });
      frame.append(button);
    });
    // Keep the place of those who work with the keyboard.
    if (focused >= 0) frame.querySelectorAll("button")[focused]?.focus();
  };
  model.on("change:jpeg", onPicture);
  onPicture();
  return () => URL.revokeObjectURL(picture.src);
}
export default { render };
