"""The frame device as one that can be virtualized."""
