"""Time the rendering of views; see simfle/commands/bench/loader.py."""

from simfle.commands.bench.loader import main

if __name__ == "__main__":
    main()
