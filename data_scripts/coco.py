"MS COCO 2014 from its archives: `python data_scripts/coco.py --out data/coco` is `wsss-data get coco --out data/coco`"
import sys

from wsss_nb.use.cli import main

if __name__ == "__main__": sys.exit(main(["wsss-data", "get", "coco", *sys.argv[1:]]))
