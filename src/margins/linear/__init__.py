"""Linear classifiers, trained by the methods that the toy pages need; many at once where they are tiny."""
