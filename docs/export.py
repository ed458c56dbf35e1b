"""`nbdev-export`, with the lists of exported names inside 120 columns.

nbdev folds such a list at 120 columns and then puts `__all__ = ` in front of it. `sh docs/sync.sh` calls this."""
from textwrap import TextWrapper

import nbdev.maker
from nbdev.doclinks import nbdev_export


class Narrower(TextWrapper):
    "Leaves room for what comes in front"
    def __init__(self, width, **kw): super().__init__(width=width-len("__all__ = "), **kw)

nbdev.maker.TextWrapper = Narrower
if __name__ == "__main__": nbdev_export()
