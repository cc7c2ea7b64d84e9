"""One file per family of scorers; each is found by being here."""
