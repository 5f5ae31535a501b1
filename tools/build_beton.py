"""Convert a labeled split of shards to one .beton file for FFCV. See `python tools/build_beton.py --help`."""

from simfle.commands.shards.ffcv import main

if __name__ == "__main__":
    main()
