"""The schema of a configuration, and how its layers are parsed."""
