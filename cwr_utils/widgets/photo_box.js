// A photo on which a box is drawn with the mouse or a finger.
function render({ model, el }) {
  const frame = document.createElement("div");
  const photo = document.createElement("img");
  const box = document.createElement("div");
  frame.className = "cwr-photo-box";
  frame.style.cssText =
    "position:relative;display:inline-block;touch-action:none;cursor:crosshair;line-height:0";
  photo.style.cssText = "max-width:100%;user-select:none";
  photo.draggable = false;
  box.style.cssText =
    "position:absolute;box-sizing:border-box;pointer-events:none;" +
    "border:3px solid #0072B2;outline:1px solid white";
  frame.append(photo, box);
  el.append(frame);

  // Edges in shares of the photo, so that they fit whatever its size on the screen.
  const show = (edges) => {
    box.style.display = edges.length ? "block" : "none";
    if (!edges.length) return;
    const [x1, y1, x2, y2] = edges.map((edge) => 100 * edge);
    Object.assign(box.style, {
      left: `${x1}%`, top: `${y1}%`, width: `${x2 - x1}%`, height: `${y2 - y1}%`,
    });
  };
  const onBox = () => {
    const [width, height] = model.get("size");
    show(model.get("box").map((edge, i) => edge / (i % 2 ? height : width)));
  };
  const onPhoto = () => {
    URL.revokeObjectURL(photo.src);
    photo.src = URL.createObjectURL(new Blob([model.get("jpeg")], { type: "image/jpeg" }));
    photo.alt = model.get("text");
    onBox();
  };

  let start = null;
  const place = (event) => {
    const area = photo.getBoundingClientRect();
    const share = (value, length) => Math.min(1, Math.max(0, value / length));
    return [share(event.clientX - area.left, area.width), share(event.clientY - area.top, area.height)];
  };
  const drawn = (event) => {
    const [x, y] = place(event);
    return [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
  };
  frame.addEventListener("pointerdown", (event) => {
    start = place(event);
    frame.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  frame.addEventListener("pointermove", (event) => start && show(drawn(event)));
  frame.addEventListener("pointerup", (event) => {
    if (!start) return;
    const edges = drawn(event);
    start = null;
    const area = photo.getBoundingClientRect();
    // A click is no box.
    if (Math.min((edges[2] - edges[0]) * area.width, (edges[3] - edges[1]) * area.height) < 4) return onBox();
    const [width, height] = model.get("size");
    model.set("box", edges.map((edge, i) => Math.round(edge * (i % 2 ? height : width))));
    model.save_changes();
  });
  frame.addEventListener("pointercancel", () => { start = null; onBox(); });
  model.on("change:jpeg", onPhoto);
  model.on("change:box", onBox);
  onPhoto();
  return () => URL.revokeObjectURL(photo.src);
}
export default { render };
