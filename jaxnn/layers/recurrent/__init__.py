"""Recurrent layers `rnn`, `gru` and `lstm`, and single steps of each."""
