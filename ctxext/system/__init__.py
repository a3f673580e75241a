"""What everything stands on: files, the network, packages that may be missing.

files.py   files that are written whole or not at all
caches.py  what is kept between runs and can be made again
names.py   names from outside, made harmless
hub.py     the Hugging Face Hub
extras.py  packages that come with an extra
"""
