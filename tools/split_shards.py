"""Assign the samples of shards to splits. See `python tools/split_shards.py --help`."""

from simfle.commands.shards.split import main

if __name__ == "__main__":
    main()
