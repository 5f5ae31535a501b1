"""Build shards from faces. See `python tools/build_shards.py --help`."""

from simfle.commands.build_shards import main

if __name__ == "__main__":
    main()
