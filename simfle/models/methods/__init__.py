"""SimFLE and the baselines, one module each."""
