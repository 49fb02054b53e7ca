"""Keras, loaded without the start-up messages of its backend's C++ libraries.

They say nothing that a reader can act on, ignore the usual switches, and would be the
first thing that every notebook shows. If the import fails, they are printed.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["jitted", "keras", "ops", "predictor"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Hold back what native code writes to standard error; print it on failure."""
    screen = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            sys.stderr.write(held_back.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


with _quiet_libraries():
    import keras

# One graph for each size of photo is meant, and no reason for a warning.
logging.getLogger("tensorflow").addFilter(
    lambda record: "tf.function retracing" not in record.getMessage()
)

ops = keras.ops


def predictor(model: keras.Model) -> Callable[[Any], Any]:
    """`predict_on_batch` of a compiled model, as several threads may call it at a time.

    For JAX models Keras hands the weights over from call to call, and each call ends
    before the next one begins: a GPU waits while results travel.

    Args:
        model: whose weights stay what they are during a call.

    Returns:
        A function from an array to NumPy arrays.
    """
    if keras.backend.backend() != "jax":
        return model.predict_on_batch
    import jax  # pyright: ignore[reportMissingImports]

    run, weights = jitted(model)
    return lambda inputs: jax.device_get(run(weights(), inputs))


def jitted(model: keras.Model) -> tuple[Any, Callable[[], Any]]:
    """A JAX model as a jitted function of weights and inputs, and its weights now."""
    import jax  # pyright: ignore[reportMissingImports]

    def run(weights, inputs):
        return model.stateless_call(*weights, inputs, training=False)[0]

    def weights():
        groups = model.trainable_variables, model.non_trainable_variables
        return [[variable.value for variable in group] for group in groups]

    return jax.jit(run), weights
