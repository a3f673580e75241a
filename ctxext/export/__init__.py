"""A patched model as a folder that other tools load."""
