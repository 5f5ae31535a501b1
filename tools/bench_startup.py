"""Time the startup of commands; see simfle/commands/bench_startup.py."""

from simfle.commands.bench_startup import main

if __name__ == "__main__":
    main()
