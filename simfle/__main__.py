"""`python -m simfle`: the same as the command `simfle`."""

from simfle.commands.main import main

if __name__ == "__main__":
    main()
