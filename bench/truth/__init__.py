"""Whole studies are simulated, so that the truth is known, and finetrap's statistics are held against it."""
