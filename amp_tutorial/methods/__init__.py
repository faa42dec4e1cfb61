"""What the field does beside AMP: other criteria, layers, repair, slicing, recovery, and one budget over them."""
