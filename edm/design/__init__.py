"""Table 1, one file per row; augmentation (Table 6); random numbers. Pure functions of tensors."""
