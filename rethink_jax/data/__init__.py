"""Data sets, their corruption, and what happens to a batch before the network sees it."""
