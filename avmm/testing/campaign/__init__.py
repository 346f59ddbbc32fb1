"""Campaigns: a scenario run many times, over a matrix of seeds and parameters, by processes here or on a cluster."""
