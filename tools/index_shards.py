"""Write indexes and a manifest for external tars: python tools/index_shards.py DIR."""

from simfle.commands.index_shards import main

if __name__ == "__main__":
    main()
