"""Find duplicate images. See `python tools/find_duplicates.py --help`."""

from simfle.commands.shards.duplicates import main

if __name__ == "__main__":
    main()
