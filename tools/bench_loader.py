"""Time the rendering of views; see simfle/commands/bench_loader.py."""

from simfle.commands.bench_loader import main

if __name__ == "__main__":
    main()
