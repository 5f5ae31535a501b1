"""Diagnose a machine or a cluster, and advise on fixes."""
