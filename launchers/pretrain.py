"""accelerate launch launchers/pretrain.py CONFIG key=value ... (or plain python for one process)."""

from simfle.commands.pretrain import main

if __name__ == "__main__":
    main()
