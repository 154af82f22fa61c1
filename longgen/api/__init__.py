"""The command line in Python: `longgen.generate`, `.load`, `.plan`, `.compare`, `.probe`, with its names and defaults."""
