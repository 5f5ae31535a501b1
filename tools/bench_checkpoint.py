"""Time checkpoints; see simfle/commands/bench_checkpoint.py."""

from simfle.commands.bench_checkpoint import main

if __name__ == "__main__":
    main()
