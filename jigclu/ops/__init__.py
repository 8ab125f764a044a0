"""Pure functions of tensors: no files, no gin."""
