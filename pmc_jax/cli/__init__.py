"""The command line: the commands, their settings from YAML and `key=value`, help and errors."""
