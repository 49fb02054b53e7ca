// A photo on which a box is drawn with the mouse or a finger; another photo is uploaded,
// dropped or pasted on it. Large files are scaled here: a message to the kernel holds 10 MB.
const LARGE = 4e6, LONGEST = 2000; // bytes, pixels

async function fit(file) {
  if (file.size <= LARGE) return file;
  const photo = await createImageBitmap(file); // upright, as its EXIF data say
  const scale = Math.min(1, LONGEST / Math.max(photo.width, photo.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(photo.width * scale);
  canvas.height = Math.round(photo.height * scale);
  const paper = canvas.getContext("2d");
  paper.imageSmoothingQuality = "high";
  paper.drawImage(photo, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}

function render({ model, el }) {
  el.classList.add("cwr-photo-panel");
  const frame = document.createElement("div");
  const photo = document.createElement("img");
  const box = document.createElement("div");
  frame.className = "cwr-photo-box";
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label",
    "Photo: drag to draw a box, or use the sliders; paste or drop another photo here");
  photo.draggable = false;
  box.className = "cwr-drawn";
  frame.append(photo, box);
  const upload = document.createElement("button");
  upload.type = "button";
  upload.className = "cwr-upload";
  upload.textContent = "Upload a photo";
  const chooser = document.createElement("input");
  Object.assign(chooser, { type: "file", accept: "image/*", hidden: true });
  const hint = document.createElement("span");
  hint.textContent = " or drop or paste one here. Drag on the photo to draw a box.";
  el.append(frame, upload, chooser, hint);

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

  const send = async (file) => {
    if (!file) return;
    try {
      const small = await fit(file);
      model.send({ name: file.name }, undefined, [await small.arrayBuffer()]);
    } catch {
      const size = `${(file.size / 1e6).toFixed(0)} MB`;
      const refused = `the browser cannot scale its ${size} down; save it as JPEG`;
      model.send({ name: file.name, refused });
    }
  };
  upload.addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    send(chooser.files[0]);
    chooser.value = ""; // or the same file, chosen again, would be no change
  });
  el.addEventListener("paste", (event) => send(event.clipboardData.files[0]));
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    el.addEventListener(kind, (event) => {
      event.preventDefault();
      el.classList.toggle("cwr-drop", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") send(event.dataTransfer.files[0]);
    });
  }

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
    frame.focus({ preventScroll: true });
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
  return () => {
    URL.revokeObjectURL(photo.src);
    model.off("change:jpeg", onPhoto);
    model.off("change:box", onBox);
  };
}
export default { render };
