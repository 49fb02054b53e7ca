"""The explorers as a person uses them: JupyterLab in a browser, mouse and keyboard.

Needs Chromium (Debian: `apt-get install chromium`). Screenshots stay in a folder that
the test prints; look at them.
"""

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

import nbformat
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
    "limit": 16,
    "resize": "320x240",
    "num_whitening_classes": 8,
    "dimensions": 32,
    "rerank": 2,
}
RUN = 240_000  # milliseconds for a notebook on a busy machine
ANSWER = 30_000


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
        self.page.locator(".jp-OutputArea-output:has(.cwr-gallery)").screenshot(
            path=self.shots / f"{name}.png"
        )

    def picture(self, number=0):
        """Content of a picture of the explorer."""
        return (
            self.page.locator(".cwr-gallery img")
            .nth(number)
            .evaluate(
                # A picture that is replaced while it is decoded is refused: look again.
                """async image => {
                for (let left = 20; ; left--) {
                    try { await image.decode(); break; }
                    catch (refused) { if (!left) throw refused; }
                    await new Promise(requestAnimationFrame);
                }
                const canvas = document.createElement("canvas");
                canvas.width = image.naturalWidth;
                canvas.height = image.naturalHeight;
                canvas.getContext("2d").drawImage(image, 0, 0);
                return canvas.toDataURL();
            }"""
            )
        )

    def ranking(self):
        """What the results say to a screen reader."""
        buttons = self.page.locator(".cwr-gallery button").all()
        return [button.get_attribute("aria-label") for button in buttons]

    def message(self):
        return self.page.locator(".jp-OutputArea-output [role=status], [role=alert]")

    def changes(self, act, look):
        """Act, wait until what is looked at is another, and say how long it took."""
        before, begun = look(), time.monotonic()
        act()
        while look() == before:
            assert time.monotonic() - begun < ANSWER / 1000, "nothing changed"
            self.page.wait_for_timeout(20)
        return time.monotonic() - begun

    def slide(self, label, key, times=1):
        """Move a slider by the keyboard."""
        handle = self.page.locator(f".widget-slider:has-text('{label}') .noUi-handle")
        handle.first.focus()
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
    desk.shot("cams-1-start")
    seconds = {
        "opacity": desk.changes(
            lambda: desk.slide("Opacity", "ArrowLeft"), desk.picture
        ),
        "class": desk.changes(lambda: desk.choose("Class", index=2), desk.picture),
        "other": desk.changes(
            lambda: desk.choose("Compare with", label="nothing"), desk.picture
        ),
        "raw": desk.changes(
            lambda: desk.choose("Values", label="raw values"), desk.picture
        ),
        "colours": desk.changes(
            lambda: desk.choose("Colours", label="magma"), desk.picture
        ),
        "boxes": desk.changes(
            lambda: desk.page.get_by_label("Boxes at the five").uncheck(), desk.picture
        ),
    }
    desk.shot("cams-2-raw-without-boxes")
    seconds["box"] = desk.changes(lambda: desk.draw(0.2, 0.3, 0.7, 0.8), desk.picture)
    desk.shot("cams-3-box")
    seconds["query"] = desk.changes(lambda: desk.choose("Photo", index=0), desk.picture)
    seconds["upload"] = desk.changes(
        lambda: desk.upload(folder / "upload.png"), desk.picture
    )
    desk.message().filter(has_text="upload.png").wait_for()
    desk.shot("cams-4-upload")
    before = desk.picture()
    desk.upload(folder / "no_photo.png")
    alert = desk.page.get_by_role("alert")
    alert.filter(has_text="no_photo.png").wait_for()
    assert "Traceback" not in alert.inner_text()
    assert desk.picture() == before
    desk.shot("cams-5-refused")
    desk.check()
    print("\n", {name: round(value, 2) for name, value in seconds.items()})


def test_the_search_explorer(desk, folder):
    desk = desk("04_evaluate_and_rerank")
    desk.shot("search-1-start")
    assert len(desk.ranking()) == 10
    assert any("positive" in label for label in desk.ranking())

    def match():
        return desk.picture(1)

    first = desk.ranking()
    desk.changes(lambda: desk.page.locator(".cwr-gallery button").nth(4).click(), match)
    assert desk.ranking() == first
    pressed = desk.page.locator(".cwr-gallery button[aria-pressed=true]")
    assert pressed.get_attribute("aria-label") == first[4]
    desk.shot("search-2-result")
    desk.changes(lambda: desk.choose("Aggregation", label="offline"), desk.ranking)
    desk.changes(lambda: desk.slide("Classes", "ArrowLeft", 2), desk.ranking)
    desk.changes(lambda: desk.slide("Re-rank", "ArrowRight", 3), desk.ranking)
    desk.changes(lambda: desk.slide("Expansion", "ArrowRight", 3), desk.ranking)
    desk.shot("search-3-reranked")
    desk.changes(lambda: desk.draw(0.3, 0.2, 0.8, 0.7), desk.ranking)
    desk.shot("search-4-box")
    before = desk.ranking()
    desk.draw(0.3, 0.3, 0.33, 0.33)
    desk.page.get_by_role("alert").filter(has_text="too few to describe").wait_for()
    assert desk.ranking() == before
    desk.changes(lambda: desk.slide("Box, left-right", "ArrowLeft", 9), desk.picture)
    desk.changes(lambda: desk.choose("Photo", index=0), desk.ranking)
    desk.shot("search-5-query")
    desk.changes(lambda: desk.upload(folder / "upload.png"), desk.ranking)
    assert all("unknown" in label for label in desk.ranking())
    desk.shot("search-6-upload")
    desk.upload(folder / "no_photo.png")
    desk.page.get_by_role("alert").filter(has_text="no_photo.png").wait_for()
    desk.check()
