"""Devices that stand for real hardware: driven at register level, by whoever is on the other end of the cable."""
