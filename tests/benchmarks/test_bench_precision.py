"""What float16 stores and mixed precision cost, in mAP, on real Oxford images."""

import pytest

from cwr_utils import datasets, networks
from cwr_utils.extraction import Setup
from cwr_utils.retrieval import Collection, Experiment, Method, tabulate

METHODS = [
    Method("crow", dimensions=64),
    Method("rmac_gem", dimensions=512),
    Method("offline", 8, 32, 512),
    Method("online", 8, 32, 512),
    Method("online", 64, 32, 512),
    Method("online", 8, 32, 512, query_expansion=10),
]


def test_bench_precision(measure, full_size, dev_data, tmp_path):
    """The same photos, network and methods; only the precision differs."""
    if not full_size:
        pytest.skip("minutes, and the development photographs: only in `make bench`")
    data = datasets.load("oxford5k", dev_data / "oxford5k_dev")
    training = datasets.load(str(dev_data / "timisoara"))

    def scores(name, policy, dtype):
        network = networks.load("efficientnet-lite0", precision=policy)
        setup = Setup(
            network,
            tmp_path / name,
            layer="block6b_expand_relu",
            resize="1024x720",
            power=2.0,
            dtype=dtype,
        )
        experiment = Experiment(data, training, setup)
        experiment.extract()
        table, _, _ = tabulate(Collection.open(experiment), METHODS)
        return dict(zip(table["method"], table["mAP"], strict=True))

    def losses():
        exact = scores("exact", "float32", "float32")
        facts = {"mAP, float32 network and store": exact}
        for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
            got = scores(policy, policy, "float16")
            differences = {key: got[key] - exact[key] for key in exact}
            what = f"{policy} network and float16 store"
            facts[f"difference of a {what}"] = differences
            facts[f"largest, {what}"] = max(map(abs, differences.values()))
        return facts

    measure("Precision on 164 Oxford images", losses, "differences < 0.002 mAP")
