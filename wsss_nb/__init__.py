__version__ = "0.2.0"

import sys

if "ipykernel" in sys.modules:  # in a notebook
    from .ground.failures import one_line_errors
    one_line_errors()
