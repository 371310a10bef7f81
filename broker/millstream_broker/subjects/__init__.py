"""Subjects: validity, matching, transforms."""
