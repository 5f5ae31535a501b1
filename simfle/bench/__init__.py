"""Measuring side by side: several ways of one piece of work, in turn, in one process."""
