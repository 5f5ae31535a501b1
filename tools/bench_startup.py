"""Time the startup of commands; see simfle/commands/bench/startup.py."""

from simfle.commands.bench.startup import main

if __name__ == "__main__":
    main()
