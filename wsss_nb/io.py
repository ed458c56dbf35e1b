"The module `wsss_nb.ground.io` under the short name that README and other projects use"
import sys

from .ground import io

sys.modules[__name__] = io
