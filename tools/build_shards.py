"""Build shards from faces. See `python tools/build_shards.py --help`."""

from simfle.commands.shards.build import main

if __name__ == "__main__":
    main()
