"""Recurrent layers: `rnn`, `gru`, `lstm`, the same one step at a time, and the sequences that they read."""
