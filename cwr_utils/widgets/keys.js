// Keeps JupyterLab's shortcuts away from the controls of an explorer, and names those that
// have no label. The attribute must be on each control itself: Lumino looks nowhere else.
const CONTROLS = "a, button, input, select, summary, [tabindex], [contenteditable]";

function mend(explorer) {
  for (const control of explorer.querySelectorAll(CONTROLS))
    control.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const slider of explorer.querySelectorAll(".widget-slider")) {
    const name = slider.querySelector(".widget-label").textContent;
    const handles = [...slider.querySelectorAll(".noUi-handle")];
    handles.forEach((handle, i) =>
      handle.setAttribute("aria-label", handles[1] ? `${name}: ${i ? "to" : "from"}` : name));
    slider.querySelector(".widget-readout")?.setAttribute("aria-label", `${name}: value`);
  }
}

function render({ el }) {
  const watcher = new MutationObserver(() => mend(el.closest(".cwr-explorer")));
  let waiting = requestAnimationFrame(function start() {
    const explorer = el.closest(".cwr-explorer");
    if (!explorer) return (waiting = requestAnimationFrame(start)); // not in the page yet
    mend(explorer);
    watcher.observe(explorer, { childList: true, subtree: true });
  });
  return () => {
    cancelAnimationFrame(waiting);
    watcher.disconnect();
  };
}
export default { render };
