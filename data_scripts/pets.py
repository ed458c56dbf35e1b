"""Oxford-IIIT Pet from its archives: `python data_scripts/pets.py --out data/pets` is
`wsss-data get pets --out data/pets`"""
import sys

from wsss_nb.use.cli import main

if __name__ == "__main__": sys.exit(main(["wsss-data", "get", "pets", *sys.argv[1:]]))
