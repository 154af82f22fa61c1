"""The documentation as Markdown, which `longgen docs TOPIC` prints, and the generator of its tables."""
