"""Select a fraction of the samples of shards. See `python tools/subset_shards.py --help`."""

from simfle.commands.subset_shards import main

if __name__ == "__main__":
    main()
