"""Ports implemented with other packages; each module asks for its own extra."""
