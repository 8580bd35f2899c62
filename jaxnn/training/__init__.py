"""Training: data come in at one door, go through steps and epochs, and come out as a Fit."""
