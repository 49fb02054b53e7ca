"""Keras, loaded without the start-up messages of its backend's C++ libraries.

They say nothing that a reader can act on, ignore the usual switches, and would be the
first thing that every notebook shows. If the import fails, they are printed.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keras", "ops"]

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
