"""Schema of a configuration, and parsing of its layers."""
