"""Time training with data; see simfle/commands/bench_train.py."""

from simfle.commands.bench_train import main

if __name__ == "__main__":
    main()
