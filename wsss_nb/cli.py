"The module `wsss_nb.use.cli` under the short name that launchers use: `torchrun ... -m wsss_nb.cli METHOD ...`"
import sys

from .use import cli

if __name__ == "__main__": sys.exit(cli.main())
sys.modules[__name__] = cli
