"""Measure weak scaling over processes. See --help."""

from simfle.commands.bench.scaling import main

if __name__ == "__main__":
    main()
