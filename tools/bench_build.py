"""Time the building of shards; see simfle/commands/bench_build.py."""

from simfle.commands.bench_build import main

if __name__ == "__main__":
    main()
