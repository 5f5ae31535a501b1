"""Several folders of shards as one. See `python tools/merge_shards.py --help`."""

from simfle.commands.merge_shards import main

if __name__ == "__main__":
    main()
