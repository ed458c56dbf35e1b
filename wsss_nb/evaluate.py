"The module `wsss_nb.scores.confusion` under the short name that README and other projects use"
import sys

from .scores import confusion

sys.modules[__name__] = confusion
