"""Write indexes and a manifest for external tars: python tools/index_shards.py DIR."""

from simfle.commands.shards.index import main

if __name__ == "__main__":
    main()
