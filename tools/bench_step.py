"""Time a training step; see simfle/commands/bench_step.py."""

from simfle.commands.bench_step import main

if __name__ == "__main__":
    main()
