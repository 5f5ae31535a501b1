"""Load backbones: our own and external ones."""
