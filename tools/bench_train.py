"""Time training with data; see simfle/commands/bench/train.py."""

from simfle.commands.bench.train import main

if __name__ == "__main__":
    main()
