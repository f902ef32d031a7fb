"""Pure NumPy functions of the score matrix, the curves and the sketches."""
