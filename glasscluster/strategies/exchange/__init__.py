"""Whole replicas that do not all-reduce: parameter servers, local SGD, backup workers."""
