"""Methods, networks and losses."""
