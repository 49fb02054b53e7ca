"""Photos a second on one GPU, Keras on JAX: where the time goes, and how exact it is.

    KERAS_BACKEND=jax python tests/benchmarks/device.py --out FOLDER [--photos FOLDER]

Writes FOLDER/device.json after each step, and the descriptors of a few photos, computed
here (NETWORK-PRECISION.npz) and in float32 on the CPU (NETWORK-cpu.npz). With
`--reference` only the latter, on any machine; `--compare A B` prints the cosines of two
such folders. VGG-16-CAM has random weights, which NumPy draws from a fixed seed.
"""

import argparse
import functools
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from cwr_utils import networks
from cwr_utils.backend import jitted, keras
from cwr_utils.datasets import Dataset, folder
from cwr_utils.extraction import Describer, Setup, extract
from cwr_utils.extraction import photos as extraction
from cwr_utils.extraction.ahead import DECODERS, helpers
from cwr_utils.extraction.describer import finish
from cwr_utils.images import ResizePolicy, read_image, resize_image
from cwr_utils.store import DiskStore

CASES = {"vgg16-cam": (None, "1024x720"), "efficientnet-lite2": ("imagenet", "724x509")}
PRECISIONS = ("mixed_float16", "float32")
# Dense TFLOP/s of NVIDIA's H100 SXM data sheet, which the H200 shares. By default JAX
# multiplies float32 in TF32.
PEAK = {"mixed_float16": 989.4, "float32": 494.7}
COMPARED = 8  # photos whose descriptors are kept
STEP = 16  # every so many-th class of theirs
SECONDS = 1.5  # of each timed loop


class Clock:
    """What of the time is left, so that the run ends by itself."""

    def __init__(self, limit: float):
        self._start, self._limit = time.monotonic(), limit

    @property
    def spent(self) -> float:
        return time.monotonic() - self._start

    def has(self, seconds: float) -> bool:
        return self.spent + seconds < self._limit


def rate(step: Callable[[], object], photos: int, least: float = SECONDS) -> float:
    """Photos a second of a step that handles so many, called until `least` seconds."""
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < least:
        step()
        calls += 1
    return calls * photos / (time.perf_counter() - start)


def many_files(source: Dataset, folder_path: Path, count: int) -> Dataset:
    """Copies of a data set's photos in turn, `count` files."""
    folder_path.mkdir()
    for number in range(count):
        original = source.path(source.images[number % len(source.images)])
        shutil.copy(original, folder_path / f"{number:05}.jpg")
    return folder.load(folder_path)


def generated(folder_path: Path, count: int, size: tuple[int, int]) -> Dataset:
    """Patterns with noise, as large as photographs, where no photos are given."""
    # Last: the conftest.py that is meant is the one beside this file.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from test_bench_extraction import photos

    return photos(folder_path, count, size)


def decode(data: Dataset, policy: ResizePolicy) -> list[np.ndarray]:
    """All photos, resized, by as many threads as an extraction has."""
    with helpers(DECODERS) as decoders:
        return list(
            decoders.map(
                lambda name: resize_image(read_image(data.path(name)), policy),
                data.images,
            )
        )


def kept(described: dict) -> dict[str, np.ndarray]:
    """What is compared of a batch's arrays, in float32."""
    arrays = {
        "globals": described["globals"],
        "class_vectors": described["class_vectors"][:, ::STEP],
        "logits": described["logits"],
    }
    return {k: np.asarray(v[:COMPARED], np.float32) for k, v in arrays.items()}


def cosines(ours: dict, theirs: dict) -> dict[str, str]:
    """Mean and smallest cosine of each kind of vector; those that are zero left out."""
    found = {}
    for name in ("globals", "class_vectors", "logits"):
        a, b = (np.asarray(v[name], np.float64) for v in (ours, theirs))
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosine = np.sum(a * b, axis=-1)[norms > 0] / norms[norms > 0]
        found[name] = f"mean {cosine.mean():.7f}, least {cosine.min():.7f}"
    same = np.argmax(ours["logits"], axis=1) == np.argmax(theirs["logits"], axis=1)
    found["same first class"] = f"{same.sum()} of {len(same)}"
    return found


def describer_of(name: str, size: str | None, precision: str, scratch: Path):
    """A network's describer, at the size of its case unless another is given."""
    weights, usual = CASES[name]
    network = networks.load(name, weights, precision=precision)
    return Describer(Setup(network, scratch, resize=size or usual))


def graph_of(describer: Describer, images: np.ndarray):
    """The jitted function of a describer and its weights, after a first pass."""
    describer(images)
    return jitted(describer._graphs[images.shape[1:3]])


def reference(name: str, size: str | None, pixels: list, scratch: Path) -> dict:
    """Descriptors of the first photos in float32 on the CPU, two at a time."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        describer = describer_of(name, size, "float32", scratch)
        images = np.stack(pixels[:COMPARED])
        parts = [kept(describer(images[i : i + 2])) for i in range(0, len(images), 2)]
    values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {**values, "weights": np.array(describer.setup.network.weights_sha256)}


def flops(run, state, images: np.ndarray) -> float:
    """Floating-point operations of a pass as XLA counts them, before it optimises."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    with jax.default_device(jax.devices("cpu")[0]):
        lowered = run.lower(shapes, jax.ShapeDtypeStruct(images.shape, images.dtype))
        return lowered.cost_analysis()["flops"]


def try_batches(describer: Describer, pixels: list, batches: list, clock: Clock):
    """The compiled graph alone, on photos that are on the device already."""
    found = {}
    for batch in batches:
        if found and not clock.has(100):
            break
        stacks = [
            np.stack([pixels[(start + i) % len(pixels)] for i in range(batch)])
            for start in range(0, 3 * batch, batch)
        ]
        start = time.perf_counter()
        try:
            run, weights = graph_of(describer, stacks[0])
            here = [jax.device_put(stack) for stack in stacks]
            state = weights()
            compiled = run.lower(state, here[0]).compile()
            jax.block_until_ready([compiled(state, stack) for stack in here])
        except Exception as error:  # too large for the memory, say
            found[batch] = {"error": str(error)[:300]}
            continue
        seconds = time.perf_counter() - start

        def step(compiled=compiled, state=state, here=here):
            jax.block_until_ready([compiled(state, stack) for stack in here])

        found[batch] = {
            "photos a second": rate(step, batch * len(here)),
            "GFLOP a photo": flops(run, state, stacks[0]) / batch / 1e9,
            "seconds to compile": seconds,
        }
        if memory := compiled.memory_analysis():
            found[batch]["GiB while it runs"] = memory.temp_size_in_bytes / 2**30
    return found


def end_to_end(describer: Describer, data: Dataset, batch: int, place: Path) -> float:
    """Photos a second from files to a store, hashing included; compiled before."""
    usual = extraction.Describer
    extraction.Describer = lambda setup: describer
    try:
        start = time.perf_counter()
        extract(replace(data, facts={}), describer.setup, place, batch=batch)
        return len(data.images) / (time.perf_counter() - start)
    finally:
        extraction.Describer = usual
        shutil.rmtree(place, ignore_errors=True)


def write_rate(described: dict, describer: Describer, place: Path) -> float:
    """Photos a second of writing alone: two blocks of what a batch described."""
    images = {str(n): str(n) for n in range(128)}
    regions = described["regions"].shape[2]
    specs = extraction.array_specs(describer.setup, regions)
    store = DiskStore.create(place, {"classes": describer.setup.classes}, images, specs)
    values = finish(described, store)
    rows = np.arange(store.block) % len(values["globals"])
    values = {key: np.asarray(value)[rows] for key, value in values.items()}
    numbers = iter(range(1000))
    try:
        return rate(
            lambda: store.write_block(next(numbers) % 2, values), store.block, 1.0
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def measure(args, name, precision, data, pixels, clock, places, facts) -> None:
    """One network in one precision; fills `facts` as it goes."""
    describer = describer_of(name, args.size, precision, places["disk"])
    facts["layer"] = f"{describer.setup.layer}, {describer.setup.channels} channels"
    # The best batch of the first precision serves the next one: to compile takes time.
    batches = args.best.get(name, args.batches)
    found = try_batches(describer, pixels, batches, clock)
    facts["graph alone, by batch"] = found
    good = {b: v["photos a second"] for b, v in found.items() if "error" not in v}
    best = max(good, key=lambda b: good[b])
    reached = found[best]["GFLOP a photo"] * good[best] / 1e3
    args.best[name] = [best]
    facts["best batch"] = best
    facts["graph, photos a second"] = good[best]
    facts["graph, TFLOP/s"] = reached
    facts["share of the data sheet"] = reached / PEAK[precision]
    facts["share of a large product"] = reached / args.products[precision]
    images = np.stack([pixels[i % len(pixels)] for i in range(best)])
    described = describer(images)
    few = pixels[:COMPARED]
    filled = np.stack(few + few[-1:] * (best - len(few)))[: max(best, len(few))]
    values = kept(describer(filled))
    np.savez(
        args.out / f"{name}-{precision}.npz",
        **values,
        weights=np.array(describer.setup.network.weights_sha256),
    )
    facts["NumPy to NumPy, photos a second"] = {}
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            facts["NumPy to NumPy, photos a second"][f"{threads} at a time"] = rate(
                lambda pool=pool: list(pool.map(describer, [images] * 6)), 6 * best
            )
    facts["writing alone, photos a second"] = {
        where: write_rate(described, describer, place / "written")
        for where, place in places.items()
    }
    ends = facts["end to end, photos a second"] = {}
    for where, place in places.items():
        ends[f"all classes, {where}, batch {best}"] = max(
            end_to_end(describer, data, best, place / "store") for _ in range(2)
        )
    if clock.has(60):
        top = Describer(replace(describer.setup, classes=64))
        top(images)
        ends[f"top 64 classes, disk, batch {best}"] = max(
            end_to_end(top, data, best, places["disk"] / "store") for _ in range(2)
        )
    stats = jax.devices()[0].memory_stats() or {}
    facts["GiB at most until here"] = stats.get("peak_bytes_in_use", 0) / 2**30


def product_rate(precision: str, side: int) -> float:
    """TFLOP/s of a large matrix product, the best that this card gives here."""
    dtype = "float16" if precision == "mixed_float16" else "float32"
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    step = functools.partial(product, a, b)
    step().block_until_ready()
    calls = 20
    return (
        2
        * side**3
        * calls
        / 1e12
        * rate(
            lambda: jax.block_until_ready([step() for _ in range(calls)]), 1, SECONDS
        )
    )


def compare(one: Path, other: Path) -> None:
    """Cosines of all descriptors of a folder with the CPU's of another."""
    for path in sorted(one.glob("*.npz")):
        name = next(name for name in CASES if path.name.startswith(name))
        theirs = np.load(other / f"{name}-cpu.npz")
        ours = np.load(path)
        if str(ours["weights"]) != str(theirs["weights"]):
            raise SystemExit(f"{path} and {other}: other weights")
        print(path.name, json.dumps(cosines(ours, theirs)))


def parse() -> argparse.Namespace:
    """Arguments; `--size`, `--count` and `--side` make a run small."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("device"))
    parser.add_argument("--photos", type=Path, help="a folder of JPEG of one size")
    parser.add_argument("--count", type=int, default=768, help="files end to end")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--networks", nargs="+", default=list(CASES))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--size", help="instead of each network's own")
    parser.add_argument("--side", type=int, default=8192, help="of a large product")
    parser.add_argument("--limit", type=float, default=220, help="seconds")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--compare", type=Path, nargs=2)
    return parser.parse_args()


def main() -> None:
    """Run what the arguments ask for."""
    args = parse()
    if args.compare:
        compare(*args.compare)
        return
    if keras.backend.backend() != "jax":
        raise SystemExit("this benchmark is of Keras on JAX: set KERAS_BACKEND=jax")
    clock = Clock(args.limit)
    args.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="device-"))
    places = {"disk": scratch}
    if os.access("/dev/shm", os.W_OK):
        places["memory"] = Path(tempfile.mkdtemp(prefix="device-", dir="/dev/shm"))
    # A graph that is compiled twice is read from there the second time.
    jax.config.update("jax_compilation_cache_dir", str(scratch / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        if args.photos:
            source = folder.load(args.photos)
        else:
            source = generated(scratch / "generated", 32, (1024, 768))
        if args.reference:
            for name in args.networks:
                policy = ResizePolicy.parse(args.size or CASES[name][1])
                pixels = decode(source, policy)
                np.savez(
                    args.out / f"{name}-cpu.npz",
                    **reference(name, args.size, pixels, scratch),
                )
                print(f"{name}: {clock.spent:.0f} s", flush=True)
            return
        benchmark(args, source, clock, places)
    finally:
        for place in places.values():
            shutil.rmtree(place, ignore_errors=True)


def benchmark(args, source: Dataset, clock: Clock, places: dict[str, Path]) -> None:
    """Everything; what fails is written down, and the rest goes on."""
    device = jax.devices()[0]
    data = many_files(source, places["disk"] / "photos", args.count)
    bytes_each = sum(data.path(n).stat().st_size for n in data.images) / args.count
    args.products = {p: product_rate(p, args.side) for p in args.precisions}
    args.best = {}
    report = {
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "keras": keras.__version__,
        "photos": args.count,
        "kB a photo": bytes_each / 1e3,
        "TFLOP/s of a large product": args.products,
        "TFLOP/s, data sheet": PEAK,
        "cases": {},
        "cosine with float32 on the CPU": {},
        "decoding and resizing alone, photos a second": {},
    }

    def save():
        report["seconds until here"] = clock.spent
        text = json.dumps(report, indent=1, default=float)
        (args.out / "device.json").write_text(text + "\n")

    decoded = {}
    for name in args.networks:
        policy = ResizePolicy.parse(args.size or CASES[name][1])
        decoded[name] = decode(data, policy)[: max(128, *args.batches)]
        report["decoding and resizing alone, photos a second"][name] = rate(
            lambda policy=policy: decode(data, policy), args.count, 1.0
        )
    report["checking and hashing alone, photos a second"] = rate(
        lambda: replace(data, facts={}).hashes(), args.count, 1.0
    )
    save()
    for precision in args.precisions:
        for name in args.networks:
            facts = report["cases"][f"{name}, {precision}"] = {}
            try:
                if not clock.has(75):
                    raise TimeoutError("no time was left for it")
                measure(
                    args, name, precision, data, decoded[name], clock, places, facts
                )
            except Exception:
                facts["error"] = traceback.format_exc()[-1500:]
            facts["done after, s"] = clock.spent
            save()
            print(f"{name}, {precision}: {json.dumps(facts, default=float)}\n")
            sys.stdout.flush()
    for name in args.networks:
        if not clock.has(10):
            break
        start = clock.spent
        try:
            values = reference(name, args.size, decoded[name], places["disk"])
        except Exception:
            print(traceback.format_exc()[-1500:])
            continue
        np.savez(args.out / f"{name}-cpu.npz", **values)
        for precision in args.precisions:
            path = args.out / f"{name}-{precision}.npz"
            if path.exists():
                report["cosine with float32 on the CPU"][f"{name}, {precision}"] = (
                    cosines(np.load(path), values)
                )
        report[f"seconds of the CPU, {name}"] = clock.spent - start
        save()
    print(table(report))


def table(report: dict) -> str:
    """The figures that a README shows."""
    lines = [
        f"{report['device']}, {report['cores']} cores, JAX {report['jax']}; "
        f"{report['photos']} files of {report['kB a photo']:.0f} kB; "
        f"{report['seconds until here']:.0f} s",
        "| | graph | share of peak | end to end | decoding |",
        "|---|---:|---:|---|---:|",
    ]
    decoding = report["decoding and resizing alone, photos a second"]
    for case, facts in report["cases"].items():
        if "end to end, photos a second" in facts:
            ends = facts["end to end, photos a second"]
            shown = "; ".join(f"{k}: {v:.0f}" for k, v in ends.items())
            lines.append(
                f"| {case} | {facts['graph, photos a second']:.0f} | "
                f"{facts['share of the data sheet']:.2f} | {shown} | "
                f"{decoding[case.split(', ')[0]]:.0f} |"
            )
    for case, values in report["cosine with float32 on the CPU"].items():
        lines.append(f"{case}: {values}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
