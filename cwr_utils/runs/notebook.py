"""Notebooks executed through papermill: one, or several side by side."""

import asyncio
import base64
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nbformat
import papermill
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from PIL import Image
from tqdm.auto import tqdm
from traitlets.config import Config

from cwr_utils.runs import source
from cwr_utils.runs.source import RunError

# Characters of base64 above which a picture in an executed notebook gets a palette.
LARGE_PICTURE = 200_000
_WIDGET = "application/vnd.jupyter.widget-view+json"
# Characters of a folder for a socket to fit into it: macOS has 104 for both.
_LONGEST_FOLDER = 80
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


def run_notebook(
    name: str, parameters: Mapping[str, Any], output: str | Path, threads: int = 0
) -> Path:
    """Execute a notebook in a kernel of its own.

    Args:
        name: of a file in notebooks/ or notebooks/sweeps/, without the ending.
        parameters: those it does not know are left out.
        output: folder for the executed copy.
        threads: of a matrix product or a forward pass; 0 is as many as cores.

    Returns:
        The executed copy.

    Raises:
        RunError: if there is no such notebook, a parameter is of another kind, or a
            cell fails; the executed copy shows where.
    """
    known = source.defaults(name)
    chosen = {
        name: source.from_notebooks(name, source.typed(name, value))
        for name, value in parameters.items()
        if name in known
    }
    target = Path(output) / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    short = _short_folder()
    try:
        with tempfile.TemporaryDirectory(prefix="cwr-", dir=short) as sockets:
            # Sockets of the file system: no port to listen in on.
            own = {"transport": "ipc", "ip": f"{sockets}/kernel"}
            papermill.execute_notebook(
                str(source.path(name)),
                str(target),
                chosen,
                engine_name=_ENGINE,
                kernel_name="python3",
                # It stays on the screen where it is the only one.
                progress_bar={"desc": name, "unit": "cell", "leave": None},
                config=Config(KernelManager=own),
                # Not papermill's `cwd`: that moves this whole process.
                resources={"metadata": {"path": str(source.ROOT / "notebooks")}},
                threads=threads,
            )
    except papermill.PapermillExecutionError as error:
        raise RunError(
            f"{name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"The executed copy shows where: {target}"
        ) from error
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise RunError(
            f"{name} stopped: {error}. Often memory ran out; `limit` takes a slice.\n"
            f"The executed copy shows where: {target}"
        ) from error
    where = ("data_root", "whitening_root", "cache_dir", *source.FOLDERS)
    is_demo = all(v == known[k] for k, v in chosen.items() if k not in where)
    slim(target, without="" if is_demo else "demo")
    return target


def side_by_side(
    tasks: Mapping[str, Callable[[], Any]],
    jobs: int,
    title: str,
    needs: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> None:
    """Run tasks that execute notebooks, some at a time, each after those it needs.

    Where one raises an error or Ctrl-C is pressed, no other one starts and the kernels
    of those that run are ended.

    Args:
        tasks: name -> task.
        jobs: tasks at a time.
        title: of the progress bar over all.
        needs: name -> tasks that come first.
    """
    waiting, done = list(tasks), set()
    running: dict[Future, str] = {}
    with tqdm(total=len(tasks), desc=title) as bar, ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for name in [n for n in waiting if done.issuperset(needs.get(n, ()))]:
                    waiting.remove(name)
                    running[pool.submit(tasks[name])] = name
                for job in wait(running, return_when=FIRST_COMPLETED).done:
                    job.result()
                    done.add(running.pop(job))
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # Kernels have a session of their own, which Ctrl-C does not reach. One may
            # just be starting.
            while any(job.running() for job in running):
                for client in list(_clients):
                    _kill(client)
                time.sleep(0.1)
            raise


def slim(path: Path, without: str = "") -> None:
    """Make an executed notebook fit to be kept.

    Widgets go, which are blank without a kernel (progress bars; of an explorer its
    picture stays), as do paths of this machine, and large pictures get a palette of 256
    colours.

    Args:
        path: of the notebook.
        without: tag of cells that go: "demo" of those that say what was seen there.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [
        cell for cell in notebook.cells if without not in cell.metadata.get("tags", ())
    ]
    notebook.metadata.pop("widgets", None)
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        # Of explorers the picture stays that stands in for them.
        cell.outputs = [
            output
            for output in cell.outputs
            if output.get("data", {}).pop(_WIDGET, None) is None
            or any(kind.startswith("image/") for kind in output["data"])
        ]
        for output in cell.outputs:
            picture = output.get("data", {}).get("image/png", "")
            if len(picture) > LARGE_PICTURE:
                output["data"]["image/png"] = _with_palette(picture)
    nbformat.write(notebook, path)


def _with_palette(picture: str) -> str:
    """A PNG in base64, with 256 colours."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        small = io.BytesIO()
        image.convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _short_folder() -> str:
    """Where sockets can lie, whose paths have a limit that no other files have."""
    usual = tempfile.gettempdir()
    short = usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
    if not os.access(short, os.W_OK):
        raise RunError(
            f"A kernel's sockets need a short path, and {usual} has {len(usual)} "
            f"characters: set TMPDIR to a folder of at most {_LONGEST_FOLDER}."
        )
    return short


_clients: set[PapermillNotebookClient] = set()  # those that run


class _Engine(NBClientEngine):
    """Papermill's engine, with kernels that can be ended from outside."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man, kernel_name, *, threads, resources, config, **options
    ):
        limits = dict.fromkeys(_THREADS, str(threads)) if threads else {}
        client = PapermillNotebookClient(
            nb_man, kernel_name=kernel_name, resources=resources, config=config
        )
        _clients.add(client)
        try:
            client.execute(env={**os.environ, **limits})
        finally:
            _clients.remove(client)
            with suppress(RuntimeError):  # there may be none, or somebody else's
                asyncio.get_event_loop().close()  # nbclient's, of this thread


def _kill(client: PapermillNotebookClient) -> None:
    """End a kernel at once, from any thread; what it runs fails."""
    process = client.km and getattr(client.km.provisioner, "process", None)
    if process:
        process.kill()


_ENGINE = "cwr"
papermill_engines.register(_ENGINE, _Engine)
