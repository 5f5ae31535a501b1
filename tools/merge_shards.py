"""Merge several folders of shards. See `python tools/merge_shards.py --help`."""

from simfle.commands.shards.merge import main

if __name__ == "__main__":
    main()
