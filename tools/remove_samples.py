"""Remove samples from shards. See `python tools/remove_samples.py --help`."""

from simfle.commands.remove_samples import main

if __name__ == "__main__":
    main()
