__version__ = "0.2.0"

import os
import signal
import sys


def stop_quietly(*_):
    "End a command that is still being loaded, at Ctrl-C: nothing has been done, so there is nothing to say"
    os._exit(130)

# a console command has no suffix; `wsss_nb.use.cli.run_command` takes Ctrl-C over; processes that it starts keep theirs
name = os.path.basename((getattr(sys, "argv", None) or [""])[0])
if name.startswith("wsss-") and "." not in name and "multiprocessing" not in sys.modules:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler: signal.signal(signal.SIGINT, stop_quietly)
del name

if "ipykernel" in sys.modules:  # in a notebook
    from .ground.failures import one_line_errors
    one_line_errors()
