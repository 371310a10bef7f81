"""Subjects: validity and matching (`subject`), the index (`trie`), transforms (`transform`)."""
