"""What pytest is not to import here."""

collect_ignore = ["make.py"]  # It needs tools that the tests do without.
