"""Which texts are allowed, as automata over characters, bytes and tokens."""
