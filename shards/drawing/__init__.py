"""Drawn faces: geometry on a turned head, painted back to front, then lit."""
