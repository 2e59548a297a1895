"""Accuracy, stability, and the papers' tables measured on this machine."""
