"""SegmentationClassAug and train_aug.txt, in a folder that voc.py filled: `python data_scripts/sbd.py --out data` is
`wsss-data get sbd --out data`"""
import sys

from wsss_nb.use.cli import main

if __name__ == "__main__": sys.exit(main(["wsss-data", "get", "sbd", *sys.argv[1:]]))
