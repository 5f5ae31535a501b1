"""Decoding and augmentation: OpenCV and DALI."""
