"""What is known of each backbone before it is loaded: its facts, its settings, its files. No torch."""
