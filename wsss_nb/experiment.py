"The module `wsss_nb.use.experiment` under the short name that README and other projects use"
import sys

from .use import experiment

sys.modules[__name__] = experiment
