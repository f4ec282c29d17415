"""The command line: settings from YAML and `key=value` arguments, help, and errors in one line."""
