"""Accuracy, stability, and the papers' tables measured here."""
