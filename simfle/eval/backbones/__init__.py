"""Load exported and third-party backbones."""
