"""Leaf layers: formula, forward and backward of each on one screen, in the same letters."""
