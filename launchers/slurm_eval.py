"""Submit evaluations to Slurm as array jobs. See --help."""

from simfle.commands.slurm.evaluate import main

if __name__ == "__main__":
    main()
