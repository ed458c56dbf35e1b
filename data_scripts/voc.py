"PASCAL VOC 2012 from its archive: `python data_scripts/voc.py --out data` is `wsss-data get voc --out data`"
import sys

from wsss_nb.use.cli import main

if __name__ == "__main__": sys.exit(main(["wsss-data", "get", "voc", *sys.argv[1:]]))
