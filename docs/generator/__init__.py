"""What `docs/generate.py` writes, one module a kind of page."""
