"""VGG-16-CAM on this machine's fastest device: where the time of a photo goes."""

import functools

import keras
import numpy as np
import tiny
from conftest import seconds
from keras import ops
from test_bench_extraction import photos

from cwr_utils import networks
from cwr_utils.extraction import Describer, Setup, extract
from cwr_utils.extraction import photos as extraction
from cwr_utils.extraction.ahead import DECODERS, helpers
from cwr_utils.images import read_image, resize_image


def convolution_flops(network, size):
    """Floating-point operations of a forward pass, those of convolutions alone."""
    layers = [k for k in network.backbone.layers if isinstance(k, keras.layers.Conv2D)]
    probe = keras.Model(network.backbone.inputs, [layer.output for layer in layers])
    shapes = probe.compute_output_shape((1, size[1], size[0], 3))
    return sum(
        2 * np.prod(shape[1:3]) * np.prod(layer.kernel.shape)
        for layer, shape in zip(layers, shapes, strict=True)
    )


def product_rate(precision, side):
    """Floating-point operations a second of a large matrix product."""
    matrix = ops.cast(ops.ones((side, side)), precision)
    inputs = keras.Input((side,), dtype=precision)
    model = keras.Model(inputs, ops.sum(ops.matmul(inputs, matrix), axis=1))
    model.compile(**networks.compile_options())
    model.predict_on_batch(matrix)
    return 2 * side**3 / seconds(lambda: model.predict_on_batch(matrix), 5)


def test_bench_device(measure, full_size, tmp_path, monkeypatch):
    """Photos a second: end to end, decoding alone, the graph alone; share of the peak.

    On an accelerator with mixed precision and XLA, on a CPU in float32.
    """
    compiled = networks.compile_options()["jit_compile"]
    precision, count, size = "float32", 8, (1024, 768)
    side = 4096
    if not full_size:
        count, size, side, setup = 3, (96, 72), 64, tiny.setup(tmp_path)
    else:
        if compiled:
            precision, count, side = "mixed_float16", 512, 8192
        network = networks.load("vgg16-cam", None, precision=precision)
        setup = Setup(network, tmp_path, resize="1024x720")
    network, policy = setup.network, setup.policy
    # Every size is compiled once, and not timed.
    monkeypatch.setattr(extraction, "Describer", functools.cache(Describer))
    data = photos(tmp_path / "photos", count, size)

    def load(name):
        return resize_image(read_image(data.path(name)), policy)

    def decode():
        with helpers(DECODERS) as decoders:
            return list(decoders.map(load, data.images))

    def rates():
        store = extract(data, setup, tmp_path / "first")
        describer = extraction.Describer(setup)
        batch = np.stack(decode()[: store.config["batch"]])
        described = describer(batch)
        exact = store.read("class_vectors", slice(0, len(batch))).astype(np.float32)
        passes = -(-count // len(batch))
        times = {
            "end to end": seconds(lambda: extract(data, setup, tmp_path / "s")),
            "decoding alone": seconds(decode, 2),
            "graph alone": seconds(
                lambda: [describer(batch) for _ in range(passes)], 2
            ),
        }
        flops = convolution_flops(network, policy.target_size(*size))
        reached = flops * passes * len(batch) / times["graph alone"]
        peak = product_rate(network.precision, side)
        here = described["class_vectors"].astype(np.float32)
        return {
            "device": keras.distribution.list_devices()[0],
            "precision": network.precision,
            "photos": count,
            "photos a second": {key: count / value for key, value in times.items()},
            "GFLOP a photo, convolutions": flops / 1e9,
            "TFLOP/s of the graph": reached / 1e12,
            "TFLOP/s of a large product": peak / 1e12,
            "share of it": reached / peak,
            "graphs compiled": len(describer._graphs),
            "largest difference of store and graph": np.abs(here - exact).max(),
        }

    facts = measure("VGG-16-CAM, 1024x720, end to end on this device", rates)
    assert facts["largest difference of store and graph"] < 1e-3
    assert facts["graphs compiled"] == 1
