"""Notebooks as nbdev-test runs them, each in a fork of this process, which has imported what they import.

    python -P tests/notebooks.py [FLAGS]

Reads the path of a notebook from each line of its input, runs it, and answers by a line of JSON: the exit status and
all that was printed. Nothing of wsss_nb is imported here and nothing computed, so that no thread is there to be lost
in a fork, and a notebook meets the package as a fresh process does.
"""
import gc
import importlib
import json
import os
import random
import sys
import tempfile

# What takes time to import.
WARM = (
    "accelerate", "anywidget", "cv2", "IPython.display", "ipywidgets", "matplotlib.pyplot",
    "matplotlib_inline.backend_inline", "nbdev.showdoc", "nbdev.test", "numpy", "PIL.Image", "safetensors.torch",
    "scipy.io", "timm", "torch", "torch.utils.data", "torch.utils.tensorboard", "torchvision.models",
    "torchvision.transforms")
# Of these, what its package does not import by itself: `import torch` and torch.utils.tensorboard would work here
# and nowhere else. `test_hidden_imports` sees to it that nobody writes that.
HIDDEN = ("matplotlib.pyplot", "PIL.Image", "safetensors.torch", "torch.utils.tensorboard")


def run(notebook, flags, output):
    "Run a notebook in a fork whose output goes to the file `output`; return its exit status"
    child = os.fork()
    if child: return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2): os.dup2(output.fileno(), stream)
    import numpy
    random.seed(), numpy.random.seed()  # as every process has its own chance
    sys.argv = ["nbdev-test", notebook]
    from nbdev.test import nbdev_test
    sys.exit(nbdev_test(notebook, flags=flags, n_workers=0))


def main(flags=""):
    for module in WARM: importlib.import_module(module)
    # what is there stays: a fork that ends need not look through it, which took longer than many a notebook
    gc.freeze()
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output:
            status = run(line.strip(), flags, output)
            output.seek(0)
            print(json.dumps([status, output.read().decode(errors="replace")]), flush=True)


if __name__ == "__main__": main(*sys.argv[1:])
