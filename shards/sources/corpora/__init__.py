"""Known public corpora, one module each."""
