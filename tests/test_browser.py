"""The explorers as a person uses them: JupyterLab in a browser, mouse and keyboard.

Needs Chromium (Debian: `apt-get install chromium`). Screenshots stay in a folder that
the test prints; look at them.
"""

import csv
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import cv2
import nbformat
import numpy as np
import pytest
import tiny
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from cwr_utils.runs import demo, notebook, source

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install playwright"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    # All cells stay in the page, and nothing pops up.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
PARAMETERS = {
    "limit": 40,
    "resize": "320x240",
    "num_whitening_classes": 8,
    "dimensions": 32,
    "rerank": 2,
}
RUN = 240_000  # milliseconds for a notebook on a busy machine
ANSWER = 30_000
WIDTHS = (700, 900, 1150, 1440)  # pixels of the output
THEMES = ("JupyterLab Light", "JupyterLab Dark")
CONTROLS = "a, button, input, select, summary, [tabindex], [contenteditable]"

# What is cut off, scrolls sideways or sticks out, except the list of results.
CUT = """explorer => {
    const edge = explorer.getBoundingClientRect().right + 1;
    const cut = (part) => {
        const style = getComputedStyle(part);
        if (!part.clientWidth || style.clipPath !== "none") return false;
        const narrow = part.scrollWidth > part.clientWidth + 1;
        return narrow && style.overflowX !== "visible" && part.tagName !== "SELECT"
            || part.getBoundingClientRect().right > edge;
    };
    const name = (part) => `${part.tagName}.${part.className} ${part.textContent}`;
    return [...explorer.querySelectorAll("*")].filter(cut).map(name);
}"""

# Text whose contrast with what is behind it is below 4.5 to 1 (symbols: 3 to 1).
PALE = """explorer => {
    const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
    const light = (colour) => {
        const linear = (v) => v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = numbers(colour).map((value) => linear(value / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (part) => {
        for (; part; part = part.parentElement) {
            const colour = getComputedStyle(part).backgroundColor;
            if ((numbers(colour)[3] ?? 1) > 0.5) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const pale = (part) => {
        const words = (node) => node.nodeType === 3 && node.data.trim();
        const passed = part.closest(":disabled, option, .cwr-mark");
        if (passed || !part.clientWidth) return false;
        if (![...part.childNodes].some(words)) return false;
        const [a, b] = [light(getComputedStyle(part).color), light(behind(part))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return contrast < (part.matches(".cwr-chip") ? 3 : 4.5);
    };
    const name = (part) => `${part.tagName}.${part.className} ${part.textContent}`;
    return [...explorer.querySelectorAll("*")].filter(pale).map(name);
}"""

# A file that is dropped: what a browser would make of it.
DROPPED = """([name, bytes]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
    return transfer;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Notebooks 01 and 04 with small parameters, and the stores that 04 reads."""
    folder = tmp_path_factory.mktemp("browser")
    parameters = {
        **demo.preset(),
        **PARAMETERS,
        "data_root": str(source.ROOT / "data"),
        "whitening_root": str(source.ROOT / "data"),
        "cache_dir": str(folder / "cache"),
        "results_dir": str(folder / "results"),
        "figures_dir": str(folder / "figures"),
    }
    notebook.run_notebook("02_extract_features", parameters, folder / "executed")
    for name in (source.NOTEBOOKS[1], source.NOTEBOOKS[4]):
        node = load_notebook_node(str(source.path(name)))
        chosen = source.complete(name, parameters)
        nbformat.write(parameterize_notebook(node, chosen), folder / f"{name}.ipynb")
    tiny.write(folder / "upload.png", tiny.view(3, 0).repeat(4, 0).repeat(4, 1))
    # 24 million pixels of noise: more than a message to the kernel may hold.
    noise = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8)
    cv2.imwrite(str(folder / "camera.jpg"), noise, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert (folder / "camera.jpg").stat().st_size > 2**24
    (folder / "huge.tif").write_bytes(bytes(2**23))
    (folder / "no_photo.png").write_text("this is no picture")
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """Address of a JupyterLab on the loopback, with a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = folder / "jupyter"
    for name, values in SETTINGS.items():
        file = own / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    places = {
        "JUPYTER_CONFIG_DIR": own / "config",
        "JUPYTER_DATA_DIR": own / "data",
        "JUPYTER_RUNTIME_DIR": own / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": own / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": own / "workspaces",
    }
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1"]
    command += ["--LabApp.expose_app_in_browser=True"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    address = f"http://127.0.0.1:{port}"
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{address}/api?token={token}").close()
                    break
                except urllib.error.URLError:
                    assert server.poll() is None, (folder / "lab.log").read_text()
                    time.sleep(0.2)
            yield lambda name: f"{address}/lab/tree/{name}.ipynb?token={token}&reset"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Desk:
    """A notebook in a browser, and what a person does with its explorer."""

    def __init__(self, browser, address, shots):
        self.page = browser.new_page(viewport={"width": 1500, "height": 1050})
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page.set_default_timeout(ANSWER)
        self.shots, self.page_errors = shots, []
        self.page.on("pageerror", lambda error: self.page_errors.append(str(error)))
        self.page.goto(address)
        # Earlier than that, running a cell would ask for a kernel.
        self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=RUN)

    def run_all(self):
        """Run all cells and wait for the last."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(
            """() => {
                const prompts = [...document.querySelectorAll(
                    ".jp-CodeCell .jp-InputPrompt")].map(p => p.textContent.trim());
                return prompts.length && prompts.every(p => /^\\[\\d+\\]:?$/.test(p))
                    || document.querySelector("[data-mime-type*='jupyter.error']");
            }""",
            timeout=RUN,
        )
        self.check()

    def check(self):
        """No error, no warning, no widget that could not be shown."""
        outputs = self.page.locator(".jp-OutputArea-output")
        for mime in ("jupyter.error", "jupyter.stderr"):
            found = self.page.locator(f"[data-mime-type*='{mime}']")
            assert found.count() == 0, found.all_inner_texts()
        text = " ".join(outputs.all_inner_texts())
        assert "Error displaying widget" not in text
        assert "Warning" not in text
        assert self.page_errors == []

    def shot(self, name):
        """Keep a picture of the explorer."""
        self.explorer().screenshot(path=self.shots / f"{name}.png")

    def explorer(self):
        return self.page.locator(".cwr-explorer")

    def pictures(self):
        """Content of all pictures of the boards, and the boxes on them."""
        return self.page.locator(".cwr-board").evaluate_all(
            # A picture that is replaced while it is decoded is refused: look again.
            """async boards => {
                const seen = [];
                const all = kind => boards.flatMap(b => [...b.querySelectorAll(kind)]);
                for (const image of all("img")) {
                    for (let left = 20; ; left--) {
                        try { await image.decode(); break; }
                        catch (refused) { if (!left) throw refused; }
                        await new Promise(requestAnimationFrame);
                    }
                    const canvas = document.createElement("canvas");
                    canvas.width = image.naturalWidth;
                    canvas.height = image.naturalHeight;
                    canvas.getContext("2d").drawImage(image, 0, 0);
                    seen.push(canvas.toDataURL());
                }
                return seen.concat(all(".cwr-mark").map(mark => mark.style.cssText));
            }"""
        )

    def results(self):
        return self.page.locator(".cwr-results button")

    def ranking(self):
        """What the results say to a screen reader."""
        return self.results().evaluate_all("all => all.map(one => one.ariaLabel)")

    def focused(self):
        return self.page.evaluate("document.activeElement.getAttribute('aria-label')")

    def match(self):
        """What is said of the result that is looked at."""
        return self.page.locator(".cwr-board").nth(1).inner_text()

    def use_theme(self, theme):
        command = "jupyterapp.commands.execute('apputils:change-theme', {theme})"
        self.page.evaluate(f"theme => {command}", theme)

    def check_looks(self, name):
        """It fits every width in both themes; screenshots stay."""
        size = dict(self.page.viewport_size)
        for theme in THEMES:
            self.use_theme(theme)
            for width in WIDTHS:
                for _ in range(3):  # a scroll bar may come or go
                    found = self.explorer().evaluate("part => part.clientWidth")
                    wide = self.page.viewport_size["width"] + width - found
                    self.page.set_viewport_size({"width": wide, "height": 1900})
                    self.page.wait_for_timeout(200)
                where = f"{theme.split()[1].lower()}-{width}"
                explorer = self.explorer()
                assert abs(explorer.evaluate("part => part.clientWidth") - width) <= 2
                self.shot(f"{name}-{where}")
                assert explorer.evaluate(CUT) == [], where
                assert explorer.evaluate(PALE) == [], where
                shown = self.page.locator(".cwr-shown").evaluate("p => p.clientWidth")
                assert shown >= 480, where
        self.use_theme(THEMES[0])
        self.page.set_viewport_size(size)

    def check_controls(self):
        """Each has a name for screen readers and keeps JupyterLab's shortcuts away."""
        devtools = self.page.context.new_cdp_session(self.page)
        devtools.send("Accessibility.enable")
        root = devtools.send("DOM.getDocument")["root"]["nodeId"]
        chosen = ", ".join(f".cwr-explorer {kind}" for kind in CONTROLS.split(", "))
        found = devtools.send(
            "DOM.querySelectorAll", {"nodeId": root, "selector": chosen}
        )
        assert len(found["nodeIds"]) > 10
        for node in found["nodeIds"]:
            asked = {"nodeId": node, "fetchRelatives": False}
            (seen,) = devtools.send("Accessibility.getPartialAXTree", asked)["nodes"]
            markup = devtools.send("DOM.getOuterHTML", {"nodeId": node})["outerHTML"]
            tag = markup.split(">")[0]
            assert "data-lm-suppress-shortcuts" in tag, tag
            if not seen["ignored"]:  # the file chooser is hidden
                assert seen["name"]["value"].strip(), tag

    def check_shortcuts(self, control):
        """Letters that would cut, insert or change cells go to the control."""

        def cells():
            return self.page.locator(".jp-Notebook .jp-Cell").evaluate_all(
                """cells => cells.map(cell => ["jp-CodeCell", "jp-mod-active"].map(
                    name => cell.classList.contains(name)))"""
            )

        control.focus()
        before = cells()
        for key in ("b", "a", "m", "x", "d", "d", "z", "ArrowDown", "ArrowUp"):
            control.press(key)
            self.page.wait_for_timeout(30)
        assert cells() == before
        assert control.evaluate("part => part === document.activeElement")

    def message(self):
        return self.page.locator(".jp-OutputArea-output [role=status], [role=alert]")

    def changes(self, act, look):
        """Act, wait until what is looked at is another, and say how long it took."""
        before, begun = look(), time.monotonic()
        act()
        while (seen := look()) == before:
            assert time.monotonic() - begun < ANSWER / 1000, "nothing changed"
            self.page.wait_for_timeout(20)
        seconds, before = time.monotonic() - begun, None
        while seen != before:  # several keys may have several answers
            self.page.wait_for_timeout(300)
            self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
            before, seen = seen, look()
        return seconds

    def slide(self, label, key, times=1):
        """Move a slider by the keyboard."""
        handle = self.page.locator(f".widget-slider:has-text('{label}') .noUi-handle")
        handle.first.focus()
        assert handle.first.get_attribute("aria-label").startswith(label)
        for _ in range(times):
            self.page.keyboard.press(key)

    def draw(self, x1, y1, x2, y2):
        """Draw a box, in shares of the photo."""
        photo = self.page.locator(".cwr-photo-box")
        photo.scroll_into_view_if_needed()
        area = photo.bounding_box()
        at = [
            (area["x"] + x * area["width"], area["y"] + y * area["height"])
            for x, y in ((x1, y1), (x2, y2))
        ]
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        self.page.mouse.move(*at[1], steps=4)
        self.page.mouse.up()

    def upload(self, path):
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Upload a photo").click()
        chooser.value.set_files(path)

    def paste(self, path):
        """What is in the clipboard, onto the photo."""
        self.page.evaluate(
            """async bytes => {
                const type = "image/png";
                const file = new Blob([new Uint8Array(bytes)], { type });
                await navigator.clipboard.write([new ClipboardItem({ [type]: file })]);
            }""",
            list(path.read_bytes()),
        )
        self.page.locator(".cwr-photo-box").focus()
        self.page.keyboard.press("Control+V")

    def drop(self, path):
        file = [path.name, list(path.read_bytes())]
        transfer = self.page.evaluate_handle(DROPPED, file)
        for kind in ("dragenter", "dragover", "drop"):
            event = {"dataTransfer": transfer}
            self.page.locator(".cwr-photo-box").dispatch_event(kind, event)

    def choose(self, control, **option):
        self.page.get_by_label(control, exact=True).select_option(**option)


@pytest.fixture
def desk(browser, lab, folder, request):
    desks = []
    shots = folder / "screenshots"
    shots.mkdir(exist_ok=True)

    def open_notebook(name):
        desks.append(Desk(browser, lab(name), shots))
        desks[-1].run_all()
        return desks[-1]

    yield open_notebook
    print(f"\nscreenshots: {shots}")
    for desk in desks:
        if request.session.testsfailed:
            desk.page.screenshot(path=shots / f"{request.node.name}-last.png")
        desk.page.close()


def test_the_cam_explorer(desk, folder):
    desk = desk("01_load_cam_model")
    page, look = desk.page, desk.pictures
    desk.check_looks("cams")
    desk.check_controls()
    desk.check_shortcuts(page.get_by_label("Class", exact=True))
    desk.check_shortcuts(page.locator(".noUi-handle").first)
    seconds = {
        "opacity": desk.changes(lambda: desk.slide("Opacity", "ArrowLeft"), look),
        "class": desk.changes(lambda: desk.choose("Class", index=2), look),
        "arrow": desk.changes(
            lambda: page.get_by_label("Class", exact=True).press("ArrowDown"), look
        ),
        "found": desk.changes(
            lambda: page.get_by_label("Find a class").fill("hen-of-the-wo"), look
        ),
        "other": desk.changes(
            lambda: desk.choose("Compare with", label="nothing"), look
        ),
        "raw": desk.changes(lambda: desk.choose("Values", label="raw values"), look),
        "colours": desk.changes(lambda: desk.choose("Colours", label="magma"), look),
        "boxes": desk.changes(
            lambda: page.get_by_label("Boxes at the five").uncheck(), look
        ),
    }
    assert "hen-of-the-woods" in page.locator(".cwr-board").inner_text()
    desk.shot("cams-2-raw-without-boxes")
    seconds["box"] = desk.changes(lambda: desk.draw(0.2, 0.3, 0.7, 0.8), look)
    desk.shot("cams-3-box")
    seconds["query"] = desk.changes(lambda: desk.choose("Photo", index=0), look)
    for name in ("upload.png", "camera.jpg"):
        seconds[name] = desk.changes(lambda name=name: desk.upload(folder / name), look)
        desk.message().filter(has_text=name).wait_for()
    desk.shot("cams-4-upload")
    before = look()
    for name in ("no_photo.png", "huge.tif"):
        desk.upload(folder / name)
        alert = page.get_by_role("alert").filter(has_text=name)
        alert.wait_for()
        assert "Traceback" not in alert.inner_text()
        assert look() == before
    desk.shot("cams-5-refused")
    desk.check()
    print("\n", {name: round(value, 2) for name, value in seconds.items()})


def test_the_search_explorer(desk, folder):
    desk = desk("04_evaluate_and_rerank")
    page = desk.page
    first = desk.ranking()
    assert any("positive" in label for label in first)

    # More results come when one scrolls, by the keyboard too.
    assert len(first) == 30
    page.locator(".cwr-results").evaluate("part => part.scrollTo(0, 1e6)")
    desk.results().nth(39).wait_for(state="attached")
    assert desk.ranking()[:30] == first and desk.results().count() == 40
    desk.results().nth(1).focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowUp", "End", "Home", "ArrowRight"):
        page.keyboard.press(key)
    page.keyboard.press("End")
    assert desk.focused() == desk.ranking()[39]
    desk.changes(lambda: page.keyboard.press("Enter"), desk.match)
    desk.shot("search-2-last-result")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save ranking").click()
    with open(saved.value.path(), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [
        label.split(", ")[1] for label in desk.ranking()
    ]

    desk.changes(lambda: desk.results().nth(4).click(), desk.match)
    assert desk.ranking()[:30] == first
    pressed = page.locator(".cwr-results button[aria-pressed=true]")
    assert pressed.get_attribute("aria-label") == first[4]
    assert page.get_by_text("where it matches").is_visible()
    desk.check_looks("search")
    desk.check_controls()
    desk.check_shortcuts(page.get_by_label("Photo", exact=True))
    desk.changes(lambda: desk.choose("Aggregation", label="offline"), desk.ranking)
    desk.changes(lambda: desk.slide("Classes", "ArrowLeft", 2), desk.ranking)
    desk.changes(lambda: desk.choose("Weights", label="equal"), desk.ranking)
    desk.changes(lambda: desk.slide("Exponent", "ArrowRight", 5), desk.ranking)
    desk.changes(lambda: desk.choose("Neighbours", label="dba"), desk.ranking)
    desk.changes(lambda: desk.slide("Re-rank", "ArrowRight", 3), desk.ranking)
    desk.changes(lambda: desk.slide("Expansion", "ArrowRight", 3), desk.ranking)
    desk.shot("search-4-reranked")
    desk.changes(lambda: desk.draw(0.3, 0.2, 0.8, 0.7), desk.ranking)
    desk.shot("search-5-box")
    before = desk.ranking()
    desk.draw(0.3, 0.3, 0.33, 0.33)
    page.get_by_role("alert").filter(has_text="too few to describe").wait_for()
    assert desk.ranking() == before
    desk.changes(lambda: desk.slide("Box, left-right", "ArrowLeft", 9), desk.ranking)
    desk.changes(lambda: desk.choose("Photo", index=0), desk.ranking)
    again = page.get_by_role("button", name="Search with this result")
    desk.changes(again.click, desk.ranking)
    assert desk.ranking()[0].startswith("the query itself")
    desk.changes(lambda: desk.upload(folder / "upload.png"), desk.ranking)
    assert all("unknown" in label for label in desk.ranking())
    desk.shot("search-6-upload")
    mine = desk.ranking()
    desk.changes(lambda: desk.choose("Photo", index=1), desk.ranking)
    desk.changes(lambda: desk.drop(folder / "upload.png"), desk.ranking)
    assert desk.ranking() == mine
    desk.changes(lambda: desk.choose("Photo", index=1), desk.ranking)
    desk.changes(lambda: desk.paste(folder / "upload.png"), desk.ranking)
    desk.upload(folder / "no_photo.png")
    page.get_by_role("alert").filter(has_text="no_photo.png").wait_for()
    desk.check()

    # While the kernel lives, a page that is loaded again shows the same.
    before = desk.ranking()
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    desk.results().nth(29).wait_for(timeout=RUN)
    assert desk.ranking() == before
