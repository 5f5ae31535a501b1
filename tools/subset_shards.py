"""Select a fraction of the samples of shards. See `python tools/subset_shards.py --help`."""

from simfle.commands.shards.subset import main

if __name__ == "__main__":
    main()
