"""All that is to be known of a GPU on its first day; see simfle/commands/bench_gpu.py."""

from simfle.commands.bench_gpu import main

if __name__ == "__main__":
    main()
