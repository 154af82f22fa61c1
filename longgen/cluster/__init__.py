"""Grids of videos on a Ray cluster: one worker a GPU, each with a model that stays loaded."""
