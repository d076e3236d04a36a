"""One driver a program; the file's name is the program's key. Frameworks are imported inside functions."""
