"""A folder of saliency maps, checked and brought into a dataset: `python data_scripts/saliency.py voc:data --source
maps` is `wsss-data to-voc saliency voc:data --source maps`"""
import sys

from wsss_nb.use.cli import main

if __name__ == "__main__": sys.exit(main(["wsss-data", "to-voc", "saliency", *sys.argv[1:]]))
