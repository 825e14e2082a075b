"""One file a library: `versions()`, and ATTACKS: a name -> function(model, x, y, settings) -> what it found, like x.

A contender runs in its library's own environment and imports nothing of `margins`, except for ours. Settings that a
library has no word for are left at its defaults; what that changes is said in the file.
"""
