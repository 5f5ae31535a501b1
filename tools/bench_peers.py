"""Compare with lightly and LightlyTrain; see simfle/commands/bench/peers.py."""

from simfle.commands.bench.peers import main

if __name__ == "__main__":
    main()
