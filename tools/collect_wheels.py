"""Collect the packages that a machine without a network lacks, as wheels; see simfle/commands/collect_wheels.py."""

from simfle.commands.collect_wheels import main

if __name__ == "__main__":
    main()
