"""Summarize a folder of shards. See `python tools/inspect_shards.py --help`."""

from simfle.commands.shards.summary import main

if __name__ == "__main__":
    main()
