"""The leaf layers: each states its formula, forward and backward within one screen, in the same letters."""
