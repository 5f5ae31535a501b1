"""Time a training step; see simfle/commands/bench/step.py."""

from simfle.commands.bench.step import main

if __name__ == "__main__":
    main()
