"""Time checkpoints; see simfle/commands/bench/checkpoint.py."""

from simfle.commands.bench.checkpoint import main

if __name__ == "__main__":
    main()
