"""SimFLE at scale: self-supervised pretraining for facial expression recognition in the wild."""

from simfle.version import __version__

__all__ = ["__version__"]
