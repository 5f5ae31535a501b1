"""Submit a pretraining job to Slurm. See --help."""

from simfle.commands.slurm.pretrain import main

if __name__ == "__main__":
    main()
