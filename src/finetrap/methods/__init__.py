"""One file per method or family of methods."""
