"""Remove samples from shards. See `python tools/remove_samples.py --help`."""

from simfle.commands.shards.remove import main

if __name__ == "__main__":
    main()
