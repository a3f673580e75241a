"""What was asked for → cells.

request.py  the arguments, parsed, checked and frozen
grid.py     a grid file, as one request for each model and text
cells.py    the cells of a request, and the hash of all that a cell's numbers depend on
"""
