"""Measure weak scaling over processes; see simfle/commands/bench/scaling.py."""

from simfle.commands.bench.scaling import main

if __name__ == "__main__":
    main()
