"""Synthetic faces: geometry on a rotated head, painted back to front, then lit."""
