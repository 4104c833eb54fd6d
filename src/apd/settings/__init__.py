"""Settings shared by YAML, the command line and Python."""
