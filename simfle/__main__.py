"""`python -m simfle`: the same as the command `simfle`."""

from simfle.commands.main import script

if __name__ == "__main__":
    script()
