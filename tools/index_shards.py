"""Write indexes and a manifest for tars that others wrote: python tools/index_shards.py DIR."""

from simfle.commands.index_shards import main

if __name__ == "__main__":
    main()
