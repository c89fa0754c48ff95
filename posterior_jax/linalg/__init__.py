"""Linear algebra on images: Fourier diagonals, solves, decompositions, sums."""
