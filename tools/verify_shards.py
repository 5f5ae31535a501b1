"""Check a folder of shards. See `python tools/verify_shards.py --help`."""

from simfle.commands.shards.verify import main

if __name__ == "__main__":
    main()
