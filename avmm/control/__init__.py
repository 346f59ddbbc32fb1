"""The control panel: how machines are described, made, watched and driven."""
