"""Run all measurements of a GPU on its first day; see simfle/commands/gpu_day.py."""

from simfle.commands.gpu_day import main

if __name__ == "__main__":
    main()
