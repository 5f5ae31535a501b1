"""Time the building of shards; see simfle/commands/bench/build.py."""

from simfle.commands.bench.build import main

if __name__ == "__main__":
    main()
